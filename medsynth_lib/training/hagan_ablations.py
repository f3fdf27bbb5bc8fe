"""HA-GAN changed for a comparison: the three ablations of Table IV, and the losses of the public code.

Each class says what it leaves out or replaces. They exist to be compared with `HAGAN` at equal data, sub-volume and steps.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from medsynth_lib.training.hagan import DISCRIMINATORS, GENERATOR, HAGAN, Real, bce, draw_start
from medsynth_lib.training.loop import Batch, Losses, Run


class WithoutLowBranch(HAGAN):
    """HA-GAN without G^L and D^L, "w/o low-res branch": nothing judges the structure of the whole volume."""

    def make_networks(self, **kind: int) -> dict[str, nn.Module]:
        """Make the networks of Table I except G^L and D^L."""
        return {name: net for name, net in super().make_networks(**kind).items() if name not in ("G^L", "D^L")}

    def generate(self, z: Tensor, real: Real) -> tuple[Tensor, None]:
        """Return a generated sub-volume, equation (3), and no low-resolution volume."""
        a, a_r = self.common(z, real)
        del a
        return self.networks["G^H"](a_r), None

    def judge(self, x_r: Tensor, x_low: Tensor | None, r: int) -> tuple[Tensor]:
        """Return the logits of D^H."""
        return (self.networks["D^H"](x_r, r / (self.size - self.depth)),)

    def adversarial(self, logits: tuple[Tensor], real: bool) -> Tensor:
        """Return the terms of equation (4)."""
        return bce(*logits, real)

    def ground_loss(self, real: Real) -> Tensor:
        """Return lambda_2 times the second term of (7): the sub-volume from the code of the whole."""
        x_r, _ = self.generate(self.networks["E^G"](self.features(real.x)), real)
        return self.settings.lam * F.l1_loss(x_r, real.x_r)


class WithoutEncoder(HAGAN):
    """HA-GAN without E^H and E^G, "w/o encoder": updates 1 and 2 alone."""

    def make_networks(self, **kind: int) -> dict[str, nn.Module]:
        """Make the networks of Table I except E^H and E^G."""
        return {name: net for name, net in super().make_networks(**kind).items() if name not in ("E^H", "E^G")}

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Run one iteration. Update, in this order: 1. D^H and D^L, 2. G^A, G^L and G^H."""
        real = self.cut(batch, self.draw_start())
        on_real, on_fake = self.update(DISCRIMINATORS, run, lambda: self.real_loss(real), lambda: self.fake_loss(real))
        (g,) = self.update(GENERATOR, run, lambda: self.generator_loss(real))
        return {"d": on_real + on_fake, "g": g}

    def recovery(self, real: Real) -> Losses:
        """Return nothing: no code, no recovery."""
        return {}


class DeterministicStart(HAGAN):
    """HA-GAN with "deterministic r": r is one of the starts of the non-overlapping partition T_v."""

    def draw_start(self) -> int:
        """Draw r among the multiples of the sub-volume's depth."""
        return draw_start(self.size, self.depth, self.depth)


class PublicHAGAN(HAGAN):
    """HA-GAN with the public code's losses and starts.

    The logits of D^H and D^L are averaged before one cross-entropy, where (4) and (5) have one each. Equation (6) weighs 1
    and equation (7) 1/2, where (8) weighs both by lambda. r is any slice, so that the two selectors cut up to three voxels
    apart.
    """

    def draw_start(self) -> int:
        """Draw r among all slices."""
        return draw_start(self.size, self.depth, 1)

    def adversarial(self, logits: tuple[Tensor, Tensor], real: bool) -> Tensor:
        """Return one cross-entropy of the averaged logits."""
        return bce(sum(logits) / len(logits), real)

    def high_loss(self, real: Real) -> Tensor:
        """Return equation (6), unweighted."""
        return F.l1_loss(self.networks["G^H"](self.networks["E^H"](real.x_r)), real.x_r)

    def ground_loss(self, real: Real) -> Tensor:
        """Return half of equation (7)."""
        a_hat = self.features(real.x)
        x_r, x_low = self.generate(self.networks["E^G"](a_hat), real)
        return (F.l1_loss(x_low, real.x_low) + F.l1_loss(x_r, real.x_r)) / 2
