"""Adaptation as the paper's public code does it, its faults included (the repository that the paper's abstract names)."""

import torch
from torch import nn

from medsynth_lib.models.divergence import kl
from medsynth_lib.settings import PaperCodeSettings, SliceVAESettings
from medsynth_lib.training.loop import Batch, Losses, Run
from medsynth_lib.training.pix2pix import Features, Pix2Pix, l1_loss
from medsynth_lib.training.svae import to_cube

SHARE = 55  # per cent of the latent elements, the largest ones, that count; its argument ele_percent
WINDOW = (1, 99)  # percentiles of a cube that become 0 and 1 before the encoder
LAYERS = (5.0, 1.5, 1.5, 1.0)  # weights of D's first convolution and of its three blocks in the feature matching


class PaperCode(Pix2Pix):
    """Two updates a step on one Adam state: pix2pix's adversarial step on a source pair, then the latent loss.

    Update 1: D, then G on LSGAN + 100 L1 + 1.5 (5 l0 + 1.5 l3 + 1.5 l6 + l9), as in the training of the backbone.
    Update 2: G on KL(q(z | source T1) || q(z | generated T1)), the mean over the largest 55 % of the elements. Both
    volumes are first laid into a cube and scaled between its 1st and 99th percentile. The encoder sees scrambled slices,
    because the slice axis is moved by a view and not by a permutation. The "frozen" encoder is in training mode.
    Source and target are turned, flipped and changed in brightness and contrast in both updates. Batches hold one
    sample of `SourceAndTarget` with ``paired``, whose epoch is as long as the longer of the two lists.

    Differs from the public code in:
    - generator and slice-VAE are the course's: equal parameter counts at the paper's sizes, other graphs
      (`medsynth_lib.models.pix2pix`, `medsynth_lib.models.svae`);
    - the slice-VAE was trained on axial slices (there: coronal ones), of deformed heads, a few slices a step, and
      gives log-variances (there: log-deviations);
    - D starts from its first weights, because most backbones of the course learned from L1 alone (there: the backbone's D);
    - intensities and voxels are those of the lesson's contract, and the cube is the slice-VAE's (there: 256^3, 1 mm);
    - each sample is turned and flipped anew (there: once an epoch, since its reading processes keep the first draw);
    - single precision (there: half precision by autocast);
    - the number of steps and the width of D are settings (there: five epochs; 64).

    Without an encoder the second update has a gradient of zero, and Adam moves on: the control that differs in the
    latent loss alone.

    Args:
        settings: width of D, learning rate.
        generator: the source site's trained synthesiser; it is changed in place.
        encoder, svae: a trained slice-VAE's encoder and settings (2D), or None.
    """

    reads = ("x", "y", "mask", "target_x")

    def __init__(
        self,
        settings: PaperCodeSettings,
        generator: nn.Module,
        encoder: nn.Module | None = None,
        svae: SliceVAESettings | None = None,
    ) -> None:
        super().__init__(settings, generator)
        self.encoder, self.svae = encoder, svae
        if encoder is not None:
            encoder.requires_grad_(False).train()

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Augment source pair and target inputs.

        They are turned alike; brightness and contrast are drawn for each.
        """
        batch = turned({k: batch[k] for k in ("x", "y", "target_x")}, generator)
        return batch | {k: jittered(batch[k], generator) for k in ("x", "target_x")}

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Take both updates on a batch of one sample."""
        losses = super().step(batch, run)
        self.optimisers["generator"].zero_grad(set_to_none=False)
        if self.encoder is not None:
            latent = self.latent(batch)
            run.backward(latent)
            losses["latent"] = latent.detach()
        self.optimisers["generator"].step()  # also moves on a gradient of zero
        return losses

    def matching(self, fake: Features, real: Features) -> torch.Tensor:
        """Return the weighted feature matching, 5 l0 + 1.5 l3 + 1.5 l6 + l9.

        l_k is the L1 distance of D's features behind its k-th layer.
        """
        pairs = [[torch.cat(first, 1), *blocks] for blocks, first in (fake, real)]
        return sum(weight * l1_loss(f, r) for weight, f, r in zip(LAYERS, *pairs, strict=True))

    def latent(self, batch: Batch) -> torch.Tensor:
        """Return the latent loss: a mean over the elements above the 45th percentile."""
        q = self.encode(self.networks["generator"](batch["target_x"]))
        p = self.encode(batch["y"])
        elements = kl(p, q)
        return elements[elements > percentile(elements, 100 - SHARE)].mean()

    def encode(self, volume: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode one volume (1, 1, x, y, z).

        Returns: mean and log-variance of its scrambled slices, (n, width, 2, 2).
        """
        return self.encoder(windowed(scrambled_slices(volume[0, 0], self.svae.size)))


def turned(images: Batch, generator: torch.Generator) -> Batch:
    """Turn and flip images (b, c, x, y, z) alike.

    In each plane a quarter turn, or two or three, with probability 1/15 each; then flips of none, one or two axes.
    """
    for plane in ((2, 3), (2, 4), (3, 4)):
        turns = max(0, int(torch.randint(15, (), generator=generator)) - 11)
        images = {key: image.rot90(turns, plane) for key, image in images.items()}
    flips = int(torch.randint(3, (), generator=generator))
    axes = (torch.randperm(3, generator=generator)[:flips] + 2).tolist()
    return {key: image.flip(axes) for key, image in images.items()}


def jittered(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Scale x (b, c, x, y, z) in [0, 1] by a brightness, then by a contrast.

    The contrast is about each channel's mean.

    Both factors are from U(0.3, 1.5) and the same for all channels. The mean counts the background, which changes too.
    """
    brightness, contrast = (0.3 + 1.2 * torch.rand(2, generator=generator)).tolist()
    x = (brightness * x).clip(0, 1)
    return (contrast * x + (1 - contrast) * x.mean((-3, -2, -1), keepdim=True)).clip(0, 1)


def scrambled_slices(volume: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a volume (x, y, z) into slices (size, 1, size, size) with its axes mixed up.

    This is what the public code does.

    The public code stores (z, y, x), each axis turned round, and reads that memory as if it were (y, x, z). The shape is
    that of coronal slices. Each of them is a run of numbers from one or two axial slices, with rows of the wrong length.
    """
    x, y, z = volume.shape
    stored = volume.flip(0, 1, 2).permute(2, 1, 0).contiguous()
    return to_cube(stored.view(y, x, z), size)[:, None]


def windowed(cube: torch.Tensor) -> torch.Tensor:
    """Scale a cube so that its 1st and 99th percentile become 0 and 1, and clip it there."""
    low, high = (percentile(cube, q) for q in WINDOW)
    return ((cube - low) / (high - low)).clip(0, 1)


def percentile(values: torch.Tensor, q: float) -> torch.Tensor:
    """Return the q-th percentile (0 to 100) of a tensor.

    It is the nearest of its values, and carries no gradient.
    """
    k = 1 + round(0.01 * q * (values.numel() - 1))
    return values.detach().flatten().kthvalue(k).values
