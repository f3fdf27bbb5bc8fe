"""HA-GAN as the paper prints it (Sun et al., section II): equations (1) to (8).

Four choices stand where the paper is silent or cannot be followed. D^H is also told r, as in the public code. r is a
multiple of 4. The norms of (6) and (7) are means over voxels. G minimises -log D in the place of log(1 - D).

Names are those of the paper's Table I; S is the size of a volume. Departures have files of their own: `hagan_joint`
(the shipped models), `hagan_classes`, `hagan_ablations`, `hagan_mean`, `hagan_information`. `hagan_lean` is the same
mathematics in less time and memory. `hagan_build.build` makes any of them from its settings.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsynth_lib.models.hagan import networks
from medsynth_lib.settings import HAGANSettings
from medsynth_lib.training.loop import Algorithm, Batch, Losses, Run

VERSION = 2  # raise when the mathematics below changes: artefacts of another version are not reused
GENERATOR, DISCRIMINATORS = ("G^A", "G^L", "G^H"), ("D^H", "D^L")
BETA_2 = 0.999  # of Adam; section II-E


def select_high(x: Tensor, r: int, depth: int) -> Tensor:
    """Return S^H(X; r): slices r to r + depth of volumes (b, 1, S, S, S), along the first axis."""
    return x[:, :, r : r + depth]


def select_low(a: Tensor, r: int, depth: int) -> Tensor:
    """Return S^L(A; r): the same slices of features (b, 2c, S/4, S/4, S/4)."""
    return a[:, :, r // 4 : r // 4 + depth // 4]


def low_resolution(x: Tensor) -> Tensor:
    """Return X^L (b, 1, S/4, S/4, S/4): every fourth voxel, as the public code takes it."""
    return F.interpolate(x, scale_factor=0.25)


def draw_start(size: int, depth: int, step: int = 4) -> int:
    """Draw r ~ U, one for a batch (section II-E), among the multiples of ``step``.

    One slice of A covers four slices of X. So r must be a multiple of 4; then both selectors cut the same part.
    """
    return step * int(torch.randint((size - depth) // step + 1, ()))


def bce(logits: Tensor, real: bool) -> Tensor:
    """Return a term of (1) as a mean: -log D(x) where real is wanted, else -log(1 - D(x))."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


@dataclass(frozen=True)
class Real:
    """Real volumes, and what the discriminators see of them."""

    x: Tensor  # X^H (b, 1, S, S, S) in [-1, 1]
    r: int  # where the sub-volume starts
    x_r: Tensor  # S^H(X^H; r) (b, 1, depth, S, S)
    x_low: Tensor  # X^L (b, 1, S/4, S/4, S/4)


class HAGAN(Algorithm):
    """Hierarchical amortised GAN: the game of equation (8), played by four updates an iteration.

    Samples hold "x" (1, S, S, S) in [-1, 1].
    """

    settings: HAGANSettings
    reads: tuple[str, ...] = ("x",)

    def __init__(self, settings: HAGANSettings) -> None:
        self.settings, self.size = settings, settings.size
        self.depth = int(settings.size * settings.fraction)  # slices of a sub-volume
        self.networks = self.make_networks()
        self.optimisers = {name: self.make_optimiser(name) for name in self.networks}

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Run one iteration: the four updates, in this order."""
        real = self.cut(batch, self.draw_start())
        # 1. D^H and D^L
        on_real, on_fake = self.update(DISCRIMINATORS, run, lambda: self.real_loss(real), lambda: self.fake_loss(real))
        # 2. G^A, G^L and G^H
        (g,) = self.update(GENERATOR, run, lambda: self.generator_loss(real))
        # 3. E^H
        (e_high,) = self.update(("E^H",), run, lambda: self.high_loss(real))
        # 4. E^G
        (e_ground,) = self.update(("E^G",), run, lambda: self.ground_loss(real))
        return {"d": on_real + on_fake, "g": g, "e_high": e_high, "e_ground": e_ground}

    def update(self, names: tuple[str, ...], run: Run, *terms: Callable[[], Tensor]) -> list[Tensor]:
        """Take one step of these networks on the sum of the terms; return the terms' values.

        Args:
            terms: parts of the loss. They are computed here, when no other network needs gradients.
        """
        self.learn_only(names)
        values = [term() for term in terms]
        run.backward(sum(values))
        self.take_step(names)
        return [value.detach() for value in values]

    # -- section II-B: the generator, (2) and (3); the discriminators, (4) and (5) ---------------------------------------------

    def noise(self, real: Real) -> Tensor:
        """Draw Z ~ N(0, I), a code (b, latent) for each real volume."""
        return torch.randn(len(real.x), self.settings.latent, device=real.x.device)

    def common(self, z: Tensor, real: Real) -> tuple[Tensor, Tensor]:
        """Return A = G^A(Z), and A_r = S^L(A; r)."""
        a = self.networks["G^A"](z)
        return a, select_low(a, real.r, self.depth)

    def generate(self, z: Tensor, real: Real) -> tuple[Tensor, Tensor]:
        """Return a generated sub-volume and low-resolution volume."""
        a, a_r = self.common(z, real)
        x_low = self.networks["G^L"](a)  # (2)
        del a  # the largest tensor; the sub-volume needs a part of it
        x_r = self.networks["G^H"](a_r)  # (3)
        return x_r, x_low

    def judge(self, x_r: Tensor, x_low: Tensor, r: int) -> tuple[Tensor, ...]:
        """Return the logits of D^H, which is told r as a share of its largest value, and of D^L."""
        return self.networks["D^H"](x_r, r / (self.size - self.depth)), self.networks["D^L"](x_low)

    def adversarial(self, logits: tuple[Tensor, ...], real: bool) -> Tensor:
        """Return one kind of term of (4) and (5): of real volumes, or of generated ones."""
        d_high, d_low = logits
        return bce(d_high, real) + bce(d_low, real)  # (4) + (5)

    def real_loss(self, real: Real) -> Tensor:
        """Return the first terms of (4) and (5), max over D: real volumes are judged real."""
        return self.adversarial(self.judge(real.x_r, real.x_low, real.r), True)

    def fake_loss(self, real: Real) -> Tensor:
        """Return the second terms of (4) and (5), max over D: generated volumes are judged fake."""
        with torch.no_grad():
            x_r, x_low = self.generate(self.noise(real), real)
        return self.adversarial(self.judge(x_r, x_low, real.r), False)

    def generator_loss(self, real: Real) -> Tensor:
        """Return the second terms, min over G, in the non-saturating form -log D."""
        x_r, x_low = self.generate(self.noise(real), real)
        return self.adversarial(self.judge(x_r, x_low, real.r), True)

    # -- section II-C: the encoder, (6) and (7), with their weights in (8) -----------------------------------------------------

    @torch.no_grad()  # E^H learns from (6) alone
    def features(self, x: Tensor) -> Tensor:
        """Return A-hat: E^H on every sub-volume of the partition T_v, concatenated."""
        return features(self.networks["E^H"], x, self.depth)

    def high_loss(self, real: Real) -> Tensor:
        """Return lambda_1 times (6): a sub-volume from its own features."""
        a_hat_r = self.networks["E^H"](real.x_r)
        return self.settings.lam * F.l1_loss(self.networks["G^H"](a_hat_r), real.x_r)  # (6)

    def ground_loss(self, real: Real) -> Tensor:
        """Return lambda_2 times (7): both volumes that D sees, from the code of the whole."""
        a_hat = self.features(real.x)
        z_hat = self.networks["E^G"](a_hat)
        x_r, x_low = self.generate(z_hat, real)
        return self.settings.lam * (F.l1_loss(x_low, real.x_low) + F.l1_loss(x_r, real.x_r))  # (7)

    # -- section II-E: networks and optimisers; what the history shows ---------------------------------------------------------

    def make_networks(self, **kind: int) -> dict[str, nn.Module]:
        """Make the seven networks of Table I."""
        s = self.settings
        return networks(s.size, s.latent, s.c, s.fraction, **kind)

    def make_optimiser(self, name: str) -> torch.optim.Optimizer:
        """Make Adam for one network."""
        groups = [{"params": list(self.networks[name].parameters()), "rate": self.rate(name)}]
        return torch.optim.Adam(groups, self.settings.learning_rate, betas=(self.settings.beta_1, BETA_2))

    def rate(self, name: str) -> float:
        """Return a network's learning rate as a multiple of the generator's."""
        return self.settings.discriminator_rate if name in DISCRIMINATORS else 1.0

    def draw_start(self) -> int:
        """Draw r ~ U."""
        return draw_start(self.size, self.depth)

    def cut(self, batch: Batch, r: int) -> Real:
        """Return a batch with what the discriminators see of it."""
        x = batch["x"]
        return Real(x, r, select_high(x, r, self.depth), low_resolution(x))

    def learn_only(self, names: tuple[str, ...]) -> None:
        """Let these networks have gradients, and no other."""
        for name, optimiser in self.optimisers.items():
            self.networks[name].requires_grad_(name in names)
            optimiser.zero_grad(set_to_none=True)

    def take_step(self, names: tuple[str, ...]) -> None:
        """Take the optimisers' step of these networks."""
        for name, optimiser in self.optimisers.items():
            if name in names:
                optimiser.step()

    def validate(self, batch: Batch) -> Losses:
        """Return the logit of D^H for held-out volumes, and how well these are recovered."""
        real = self.cut(batch, 4 * ((self.size - self.depth) // 8))  # the middle sub-volume
        d_high = self.judge(real.x_r, real.x_low, real.r)[0]
        return {"d_real": d_high[:, 0].mean()} | self.recovery(real)

    def recovery(self, real: Real) -> Losses:
        """Return the L1 error of whole volumes from their codes, G^H(G^A(E^G(A-hat)))."""
        a, _ = self.common(self.networks["E^G"](self.features(real.x)), real)
        return {"recovery_l1": F.l1_loss(self.networks["G^H"](a), real.x)}


def features(encoder_high: nn.Module, x: Tensor, depth: int) -> Tensor:
    """Return A-hat (b, 2c, S/4, S/4, S/4): E^H on sub-volume after sub-volume.

    Args:
        encoder_high: E^H.
        x: volumes (b, 1, S, S, S).
        depth: slices of a sub-volume.
    """
    return torch.cat([encoder_high(select_high(x, t, depth)) for t in range(0, x.shape[2], depth)], 2)
