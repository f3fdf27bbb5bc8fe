"""HA-GAN with part of its code tied to measurements, by a lower bound of their mutual information.

The remedy that the HA-GAN paper leaves to future work (discussion B, after Singla et al. 2018, its [49]), in the form of
Barber and Agakov 2003 and InfoGAN (Chen et al. 2016).
"""

import numpy as np
import torch
from scipy import stats
from torch import nn
from torch.utils.data import Dataset

from medsynth_lib.training.hagan import HAGAN, low_resolution
from medsynth_lib.training.loop import Run


def information_bound(c, mean, log_variance):
    r"""$H(c) + E[\log q(c\,|\,x)] \le I(c; x)$ in nats, for c (b, k) ~ N(0, I) and $q = N(\mu(x), \sigma^2(x))$.

    H(c) is k/2 log(2 pi e), so each element adds $\tfrac12(1 - \log\sigma^2 - (c - \mu)^2 / \sigma^2)$. Below 0 where q is worse
    than the prior. It equals I where q is the true posterior.
    """
    return 0.5 * (1 - log_variance - (c - mean) ** 2 / log_variance.exp()).sum(1).mean()


def normal_scores(values):
    """Values (n, k) by rank as quantiles of N(0, 1), column by column: measurements on the scale of a code.

    Raises ValueError for a nan, which would make all its column nan.
    """
    if not np.isfinite(values).all():
        raise ValueError("normal scores need finite values; leave out the people who could not be measured")
    ranks = torch.from_numpy(stats.rankdata(values, axis=0))
    return torch.special.ndtri((ranks - 0.5) / len(ranks)).float()


class Posterior(nn.Module):
    """Q(c | x): small volumes (b, 1, S/4, S/4, S/4) to mean and log-variance (b, k). Without norms: it needs absolute values."""

    def __init__(self, k, width=16):
        super().__init__()
        layers = [
            nn.Conv3d(1, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv3d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
        ]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(16 * width, 2 * k))

    def forward(self, x):
        mean, log_variance = self.layers(x).chunk(2, 1)
        return mean, 3 * torch.tanh((log_variance + 1) / 3) - 1  # from -4 to 2, with a way back from the ends


def fit_posterior(q, x, measures, steps, batch_size=32, rate=0.002, seed=0):
    """Maximise the bound over Q on real small volumes (n, 1, S/4, S/4, S/4) and their normal scores (n, k)."""
    generator, adam = torch.Generator().manual_seed(seed), torch.optim.Adam(q.parameters(), rate)
    for _ in range(steps):
        some = torch.randint(len(x), (batch_size,), generator=generator)
        loss = -information_bound(measures[some], *q(x[some]))
        adam.zero_grad()
        loss.backward()
        adam.step()


class MeasuredCubes(Dataset):
    """`Cubes` with "measures" (k), normal scores of what was measured in them."""

    def __init__(self, cubes, measures):
        self.cubes, self.measures = cubes, measures

    def __len__(self):
        return len(self.measures)

    def __getitem__(self, index):
        return self.cubes[index] | {"measures": self.measures[index]}


class InformedHAGAN(HAGAN):
    r"""HA-GAN that also maximises a bound of $I(c; G(z))$, where $c = Uz$ is tied to measurements.

    Q learns from real volumes to tell their measurements (normal scores); G must draw volumes in which Q finds c:
    $\min_G L_G - w\,(H(c) + E[\log Q(c\,|\,G^L(G^A(z)))])$. So c means the measurement, not just anything that Q can read.

    basis: U (k, latent), orthonormal rows, so that c ~ N(0, I). start: trained networks to go on from, and Q.
    recipe: as HAGAN's, with "information_weight" w; 0 is the control. Samples hold "x" and "measures".
    Raises ValueError for a recipe with classes, whose label would be left out of G's loss, or without G^L, which Q reads.
    """

    def __init__(self, recipe, basis, start):
        if recipe["classes"] or not recipe["low_branch"]:
            raise ValueError(f"classes {recipe['classes']}, low_branch {recipe['low_branch']}: use 0 and True here")
        super().__init__(recipe)
        self.basis, self.reads = basis, (*self.reads, "measures")
        self.networks["Q"] = Posterior(len(basis))
        self.optimisers["Q"] = self.optimiser("Q")
        for name, network in self.networks.items():
            network.load_state_dict(start[name].state_dict())

    def step(self, batch, run=Run()):
        losses = super().step(batch, run)
        on_real = low_resolution(batch["x"]), batch["measures"]
        return losses | self.update(("Q",), q=lambda: -information_bound(on_real[1], *self.networks["Q"](on_real[0])))

    def generator_loss(self, b, r, label):
        z = self.noise(b, label, next(self.networks["G^A"].parameters()).device)
        fake = self.generate(z, r)
        loss = self.adversarial(self.judge(*fake, r), True)
        return loss - self.recipe["information_weight"] * self.bound(z, fake[1])

    def bound(self, z, x_low):
        return information_bound(z @ self.basis.T.to(z), *self.networks["Q"](x_low))

    def validate(self, batch):
        """The bound for 16 generated volumes, in nats, and the same expression for held-out real ones.

        It is no bound there: measurements are correlated, so that their entropy is below that of N(0, I).
        """
        z = torch.randn(16, self.recipe["latent"], generator=torch.Generator().manual_seed(0)).to(batch["x"])
        real = information_bound(batch["measures"], *self.networks["Q"](low_resolution(batch["x"])))
        return {"bound_real": real, "bound_fake": self.bound(z, self.generate(z, 0)[1])}
