"""HA-GAN with part of its code tied to measurements, by a lower bound of their mutual information.

A relative, on the generator's side, of the remedy that the HA-GAN paper leaves to future work (discussion B, after Singla
et al. 2018, its [49]). The form is that of Barber and Agakov 2003 and InfoGAN (Chen et al. 2016).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.utils.data import Dataset

from medsynth_lib.models import hagan, hagan_joint
from medsynth_lib.settings import InformedHAGANSettings
from medsynth_lib.training.hagan import DISCRIMINATORS, GENERATOR, Real, low_resolution
from medsynth_lib.training.hagan_ablations import WithoutEncoder
from medsynth_lib.training.loop import Batch, Losses, Run


def information_bound(c: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Return $H(c) + E[\log q(c\,|\,x)] \le I(c; x)$ in nats.

    Args:
        c: (b, k) ~ N(0, I).
        mean, log_variance: of $q = N(\mu(x), \sigma^2(x))$, each (b, k).

    H(c) is k/2 log(2 pi e), so each element adds $\tfrac12(1 - \log\sigma^2 - (c - \mu)^2 / \sigma^2)$. Below 0 where q is worse
    than the prior. It equals I where q is the true posterior.
    """
    return 0.5 * (1 - log_variance - (c - mean) ** 2 / log_variance.exp()).sum(1).mean()


def normal_scores(values: np.ndarray) -> Tensor:
    """Return values (n, k) by rank as quantiles of N(0, 1), column by column.

    Raises: ValueError for a nan, which would make all its column nan.
    """
    if not np.isfinite(values).all():
        raise ValueError("normal scores need finite values; leave out the volumes that could not be measured")
    ranks = torch.from_numpy(stats.rankdata(values, axis=0))
    return torch.special.ndtri((ranks - 0.5) / len(ranks)).float()


class Posterior(nn.Module):
    """Q(c | x): low-resolution volumes (b, 1, S/4, S/4, S/4) to mean and log-variance, each (b, k).

    It has no norms, since it needs absolute values.
    """

    def __init__(self, k: int, width: int = 16) -> None:
        super().__init__()
        layers = [
            nn.Conv3d(1, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
        ]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(16 * width, 2 * k))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance; the latter lies between -4 and 2."""
        mean, log_variance = self.layers(x).chunk(2, 1)
        return mean, 3 * torch.tanh((log_variance + 1) / 3) - 1  # from -4 to 2, with a way back from the ends


def fit_posterior(
    q: Posterior, x: Tensor, measures: Tensor, steps: int, batch_size: int = 32, rate: float = 0.002, seed: int = 0
) -> None:
    """Maximise the bound over Q on real volumes.

    Args:
        x: low-resolution volumes (n, 1, S/4, S/4, S/4).
        measures: their normal scores (n, k).
    """
    generator, adam = torch.Generator().manual_seed(seed), torch.optim.Adam(q.parameters(), rate)
    for _ in range(steps):
        some = torch.randint(len(x), (batch_size,), generator=generator)
        loss = -information_bound(measures[some], *q(x[some]))
        adam.zero_grad()
        loss.backward()
        adam.step()


class MeasuredCubes(Dataset):
    """`Cubes` with "measures" (k,), normal scores of what was measured in them."""

    def __init__(self, cubes: Sequence, measures: Tensor) -> None:
        self.cubes, self.measures = cubes, measures

    def __len__(self) -> int:
        return len(self.measures)

    def __getitem__(self, index: int) -> dict:
        return self.cubes[index] | {"measures": self.measures[index]}


class InformedHAGAN(WithoutEncoder):
    r"""A trained generator that goes on, and also maximises a bound of $I(c; \hat X^L)$, where $c = Uz$ is tied to measurements.

    Q learns from real volumes to tell their measurements (normal scores). G must draw volumes in which Q finds c:
    $\min_G L_G - w\,(H(c) + E[\log Q(c\,|\,G^L(G^A(z)))])$. So c means the measurement, and not anything that Q can read.
    Weight w = 0 is the control. Samples hold "x" and "measures" (k,).

    Args:
        basis: U (k, latent), orthonormal rows, so that c ~ N(0, I).
        start: trained networks to go on from, and Q. Codes are standardised where those of its G^A are.
    """

    settings: InformedHAGANSettings
    reads = ("x", "measures")

    def __init__(self, settings: InformedHAGANSettings, basis: Tensor, start: Mapping[str, nn.Module]) -> None:
        self.basis, self.start = basis, start
        super().__init__(settings)

    def load_means(self) -> None:
        """Begin the running means, where there are any, at those of the start."""
        for name in (f"mean {each}" for each in GENERATOR):
            if name in self.networks and name in self.start:
                self.networks[name].load_state_dict(self.start[name].state_dict())

    def make_networks(self, **kind: int) -> dict[str, nn.Module]:
        """Make generator, discriminators and Q with the weights of the start."""
        s, standard = self.settings, isinstance(self.start["G^A"], hagan_joint.StandardCommon)
        made = (hagan_joint if standard else hagan).networks(s.size, s.latent, s.c, s.fraction, **kind)
        made = {name: made[name] for name in (*GENERATOR, *DISCRIMINATORS)} | {"Q": Posterior(len(self.basis))}
        for name, network in made.items():
            network.load_state_dict(self.start[name].state_dict())
        return made

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Run one iteration. Update, in this order: 1. D^H and D^L, 2. G^A, G^L and G^H, 3. Q."""
        losses = super().step(batch, run)
        x_low, measures = low_resolution(batch["x"]), batch["measures"]
        (q,) = self.update(("Q",), run, lambda: -information_bound(measures, *self.networks["Q"](x_low)))
        return losses | {"q": q}

    def generator_loss(self, real: Real) -> Tensor:
        """Return the second terms of (4) and (5) for G, less the weighted bound."""
        z = self.noise(real)
        x_r, x_low = self.generate(z, real)
        loss = self.adversarial(self.judge(x_r, x_low, real.r), True)
        return loss - self.settings.information_weight * self.bound(z, x_low)

    def bound(self, z: Tensor, x_low: Tensor) -> Tensor:
        """Return the bound of I(c; X^L) in nats, of codes (b, latent) and their generated X^L."""
        return information_bound(z @ self.basis.T.to(z), *self.networks["Q"](x_low))

    def validate(self, batch: Batch) -> Losses:
        """Return the bound for 16 generated volumes in nats, and the same of held-out real ones.

        For real volumes it is no bound: it takes the entropy of independent measurements, and real ones are correlated.
        """
        real = self.cut(batch, 0)
        z = torch.randn(16, self.settings.latent, generator=torch.Generator().manual_seed(0)).to(real.x)
        on_real = information_bound(batch["measures"], *self.networks["Q"](real.x_low))
        return {"bound_real": on_real, "bound_fake": self.bound(z, self.generate(z, real)[1])}
