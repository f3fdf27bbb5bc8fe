"""HA-GAN that generates volumes of a class, as its public code does (`num_class`).

What it changes, and why: the class is appended to the code as one-hot numbers, so that a sample can be asked for. The
discriminators get one more logit for each class and learn to classify real volumes. The generator is told how well its
volumes are classified (an auxiliary classifier). The paper's section II has no classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsynth_lib.training.hagan import Real
from medsynth_lib.training.loop import Batch

LABEL_WEIGHT = 0.1  # of the classifier in the generator's loss; public code


@dataclass(frozen=True)
class Labelled(Real):
    """Real volumes with their classes."""

    label: Tensor  # (b,), integers from 0


class WithClasses:
    """What a conditional HA-GAN adds to `HAGAN` or to `JointHAGAN`; name it before them in the bases.

    Samples also hold "label", an integer from 0. Logits are (b, 1 + classes); the first column judges real or generated.
    """

    reads = ("x", "label")

    def make_networks(self, **kind: int) -> dict[str, nn.Module]:
        """Make networks with room for the classes."""
        return super().make_networks(classes=self.settings.classes, **kind)

    def cut(self, batch: Batch, r: int) -> Labelled:
        """Return a batch with what the discriminators see of it, and its classes."""
        return Labelled(**vars(super().cut(batch, r)), label=batch["label"])

    def common(self, z: Tensor, real: Labelled) -> tuple[Tensor, Tensor]:
        """Return A = G^A(Z, class), and A_r = S^L(A; r)."""
        return super().common(self.with_label(z, real.label), real)

    def with_label(self, z: Tensor, label: Tensor) -> Tensor:
        """Return codes (b, latent) with the class behind them as one-hot numbers."""
        return torch.cat([z, F.one_hot(label, self.settings.classes).to(z)], 1)

    def adversarial(self, logits: tuple[Tensor, ...], real: bool) -> Tensor:
        """Add the terms of equations (4) and (5), of the first column alone."""
        return super().adversarial(tuple(part[:, :1] for part in logits), real)

    def real_loss(self, real: Labelled) -> Tensor:
        """Return the first terms of (4) and (5), and the cross-entropy of the real volumes' classes."""
        logits = self.judge(real.x_r, real.x_low, real.r)
        return self.adversarial(logits, True) + self.label_loss(logits, real.label)

    def generator_loss(self, real: Labelled) -> Tensor:
        """Return the loss of G, and a tenth of the cross-entropy of the wanted classes."""
        logits = self.judge(*self.generate(self.noise(real), real), real.r)
        return self.adversarial(logits, True) + LABEL_WEIGHT * self.label_loss(logits, real.label)

    def label_loss(self, logits: tuple[Tensor, ...], label: Tensor) -> Tensor:
        """Return the cross-entropy of the classes by the averaged logits of D^H and D^L."""
        return F.cross_entropy(sum(part[:, 1:] for part in logits) / len(logits), label)
