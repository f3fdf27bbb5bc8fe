"""Supervised training of the 3D pix2pix (section 2, 'Backbone'; section 3, 'Configuration of the training schedule')."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from medsynth_lib.data.preparation.pairs import augment
from medsynth_lib.models.pix2pix import Discriminator, Generator
from medsynth_lib.settings import PaperCodeSettings, Pix2PixSettings
from medsynth_lib.training.loop import Algorithm, Batch, Losses, Run

VERSION = 1  # raise when the mathematics below changes: artefacts of another version are not reused
L1_WEIGHT, FEATURE_WEIGHT = 100.0, 1.5  # public code; the paper names the L1 loss alone
BETAS = (0.5, 0.999)  # of Adam; public code

Features = list[list[torch.Tensor]]  # of D: behind its three blocks, and behind its first convolution, in parts


def l1_loss(y_hat: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return L_syn of the paper, sum |y_hat - y|, as a mean over voxels.

    The paper prints x_s - x_t; it must be y_hat - y.
    """
    return (y_hat - y).abs().mean()


def lsgan_loss(logits: torch.Tensor, real: bool) -> torch.Tensor:
    """Return the least-squares GAN loss of patch logits.

    It is their mean squared distance to 1 (real) or 0 (generated).
    """
    return (logits - float(real)).square().mean()


def feature_matching_loss(fake: Sequence[torch.Tensor], real: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the L1 distance of D's features of a synthetic and a real volume.

    It is a mean over voxels, then over layers.
    """
    return sum(l1_loss(f, r.detach()) for f, r in zip(fake, real, strict=True)) / len(fake)


class Pix2Pix(Algorithm):
    """Generator FLAIR + T2 -> T1, trained on L1 alone or against a discriminator.

    Loss "l1" is the paper's text. Loss "gan" is LSGAN + 100 L1 + 1.5 L_FM, where L_FM is the mean of the feature distances
    behind D's three blocks. The public code has other weights there, 9 in all against 1, and a fourth layer:
    see `PaperCode.matching` in `medsynth_lib.training.adaptation_paper_code`.

    Args:
        settings: width, loss, augmentation, learning rate and its schedule.
        generator: one to go on with; None makes a new one.

    Raises:
        ValueError: the loss is unknown.
    """

    settings: Any  # of `Pix2PixSettings`, or those of the public code
    reads: tuple[str, ...] = ("x", "y", "mask")

    def __init__(self, settings: Pix2PixSettings | PaperCodeSettings, generator: nn.Module | None = None) -> None:
        if settings.loss not in ("l1", "gan"):
            raise ValueError(f"loss {settings.loss!r} is unknown; use 'l1' (the paper's text) or 'gan'")
        self.settings = settings
        # Narrow networks take a fifth less time on a CPU in this memory layout, which changes numbers by rounding only.
        generator = generator or Generator(width=settings.width).to(memory_format=torch.channels_last_3d)
        self.networks = {"generator": generator}
        if settings.loss == "gan":
            self.networks["discriminator"] = Discriminator(width=settings.width)
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), settings.learning_rate, BETAS)
            for name, network in self.networks.items()
        }

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Augment each sample of a batch (section 3); `augment` has the three augmentations."""
        settings = self.settings
        singles = ({k: batch[k][i] for k in self.reads} for i in range(len(batch["x"])))
        samples = [augment(sample, generator, settings.spatial, settings.intensity) for sample in singles]
        return {k: torch.stack([sample[k] for sample in samples]) for k in self.reads}

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Take one optimisation step on inputs x (b, 2, x, y, z) and targets y (b, 1, x, y, z)."""
        x, y = batch["x"], batch["y"]
        y_hat = self.networks["generator"](x)
        losses = {"l1": l1_loss(y_hat, y)}
        if self.settings.loss == "l1":
            self.update("generator", losses["l1"], run)
        else:
            losses |= self.adversarial_step(x, y, y_hat, losses["l1"], run)
        return {name: loss.detach() for name, loss in losses.items()}

    def adversarial_step(
        self, x: torch.Tensor, y: torch.Tensor, y_hat: torch.Tensor, l1: torch.Tensor, run: Run
    ) -> Losses:
        """Update D on a real and a synthetic volume, then G against the updated D.

        The synthetic volume is detached in the first update. D stays as it is in the second.
        """
        d, real, fake = self.networks["discriminator"], torch.cat([x, y], 1), torch.cat([x, y_hat], 1)
        d_loss = (lsgan_loss(d(real)[0], True) + lsgan_loss(d(fake.detach())[0], False)) / 2
        self.update("discriminator", d_loss, run)
        d.requires_grad_(False)
        with torch.no_grad():
            _, *wanted = d(real)
        logits, *found = d(fake)
        adversarial, matching = lsgan_loss(logits, True), self.matching(found, wanted)
        self.update("generator", adversarial + L1_WEIGHT * l1 + FEATURE_WEIGHT * matching, run)
        d.requires_grad_(True)
        return {"discriminator": d_loss, "adversarial": adversarial, "matching": matching}

    def matching(self, fake: Features, real: Features) -> torch.Tensor:
        """Return the feature matching of D's three blocks."""
        return feature_matching_loss(fake[0], real[0])

    def update(self, name: str, loss: torch.Tensor, run: Run) -> None:
        """Take a step of one network's optimiser."""
        self.optimisers[name].zero_grad(set_to_none=True)
        run.backward(loss)
        self.optimisers[name].step()

    def validate(self, batch: Batch) -> Losses:
        """Return the L1 over the volume and over the brain."""
        y_hat, y = self.networks["generator"](batch["x"]), batch["y"]
        return {"l1": l1_loss(y_hat, y), "brain_l1": (y_hat - y).abs()[batch["mask"]].mean()}
