"""Supervised training of the 3D pix2pix (section 2, 'Backbone'; section 3, 'Configuration of the training schedule')."""

import torch

from medsynth_lib.data.preparation.pairs import augment
from medsynth_lib.models.pix2pix import Discriminator, Generator
from medsynth_lib.settings import Pix2PixSettings
from medsynth_lib.training.loop import Algorithm, Run

VERSION = 1  # raise when the mathematics below changes: artefacts of another version are not reused
RECIPE_KEYS = ("width", "loss", "learning_rate", "constant_until", "decay_until", "final_learning_rate", "spatial",
               "intensity", "steps", "batch_size", "validate_every")  # fmt: skip
L1_WEIGHT, FEATURE_WEIGHT = 100.0, 1.5  # of the public implementation; the paper names the L1 loss alone


def l1_loss(y_hat, y):
    """L_syn of the paper, sum |y_hat - y|, as a mean over voxels. (The paper prints x_s - x_t; it must be y_hat - y.)"""
    return (y_hat - y).abs().mean()


def lsgan_loss(logits, real):
    """Least-squares GAN loss: the mean squared distance of the patch logits to 1 (real) or 0 (fake)."""
    return (logits - float(real)).square().mean()


def feature_matching_loss(fake, real):
    """Mean L1 distance between the discriminator's activations on synthetic and real volumes, averaged over layers."""
    return sum(l1_loss(f, r.detach()) for f, r in zip(fake, real, strict=True)) / len(fake)


class Pix2Pix(Algorithm):
    """Generator FLAIR+T2 -> T1, with ``loss`` "l1" (the paper's text) or "gan" (LSGAN + 100 L1 + 1.5 feature matching).

    ``settings``: width, loss, learning_rate with its schedule (constant_until, decay_until, final_learning_rate), spatial
    and intensity (probabilities of the two kinds of augmentation).
    """

    reads: tuple[str, ...] = ("x", "y", "mask")  # of a sample

    def __init__(self, settings: Pix2PixSettings, generator=None):
        if settings.loss not in ("l1", "gan"):
            raise ValueError(f"loss {settings.loss!r} is unknown; use 'l1' (the paper's text) or 'gan'")
        self.settings = settings
        # the memory layout changes numbers by rounding only, but a CPU step takes a fifth less time
        generator = generator or Generator(width=settings.width).to(memory_format=torch.channels_last_3d)
        self.networks = {"generator": generator}
        if settings.loss == "gan":
            self.networks["discriminator"] = Discriminator(width=settings.width)
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), settings.learning_rate, betas=(0.5, 0.999))
            for name, network in self.networks.items()
        }

    def prepare(self, batch, generator):
        """Augment each sample of a batch; the paper's three augmentations are in `augment`."""
        samples = [
            augment(
                {k: batch[k][i] for k in ("x", "y", "mask")},
                generator,
                self.settings.spatial,
                self.settings.intensity,
            )
            for i in range(len(batch["x"]))
        ]
        return {k: torch.stack([s[k] for s in samples]) for k in ("x", "y", "mask")}

    def step(self, batch, run=Run()):
        """One optimisation step on x (batch, 2, ...), y (batch, 1, ...); returns the losses, detached."""
        x, y = batch["x"], batch["y"]
        y_hat = self.networks["generator"](x)
        losses = {"l1": l1_loss(y_hat, y)}
        if self.settings.loss == "l1":
            self.update("generator", losses["l1"], run)
        else:
            losses |= self.adversarial_step(x, y, y_hat, losses["l1"], run)
        return {name: loss.detach() for name, loss in losses.items()}

    def adversarial_step(self, x, y, y_hat, l1, run):
        """Discriminator first, on the detached fake; then the generator against the updated discriminator."""
        d = self.networks["discriminator"]
        real, fake = torch.cat([x, y], 1), torch.cat([x, y_hat], 1)
        d_loss = (lsgan_loss(d(real)[0], True) + lsgan_loss(d(fake.detach())[0], False)) / 2
        self.update("discriminator", d_loss, run)
        logits, fake_features = d(fake)  # the gradients this leaves in d are cleared before its next update
        adversarial = lsgan_loss(logits, True)
        with torch.no_grad():
            real_features = d(real)[1]
        matching = self.matching(fake_features, real_features)
        self.update("generator", adversarial + L1_WEIGHT * l1 + FEATURE_WEIGHT * matching, run)
        return {"discriminator": d_loss, "adversarial": adversarial, "matching": matching}

    def matching(self, fake, real):
        """Feature matching on the outputs of D's three blocks."""
        return feature_matching_loss(fake[1:], real[1:])

    def update(self, name, loss, run):
        self.optimisers[name].zero_grad(set_to_none=True)
        run.backward(loss)
        self.optimisers[name].step()

    def validate(self, batch):
        """Tuning losses without augmentation: L1 over the volume and over the brain."""
        y_hat, y = self.networks["generator"](batch["x"]), batch["y"]
        return {"l1": l1_loss(y_hat, y), "brain_l1": (y_hat - y).abs()[batch["mask"]].mean()}
