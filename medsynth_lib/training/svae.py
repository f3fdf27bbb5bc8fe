"""Training of the slice-VAE and of its 3D twin (section 2, '2D s-VAE for modeling 3D distribution', eq. 1)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from medsynth_lib.models.svae import VAE
from medsynth_lib.settings import SliceVAESettings
from medsynth_lib.training.loop import Algorithm, Batch, Losses, Run

VERSION = 2  # raise when the mathematics below changes: artefacts of another version are not reused
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}  # of (x, y, z) in RAS order


def to_cube(volume: Tensor, size: int) -> Tensor:
    """Zero-pad (or crop) volumes (..., x, y, z) about their centre to ``size`` along each axis.

    The paper's "re-scaling" of (240, 240, 155) to 256 slices of 256 x 256 is this padding in its public code.
    """
    pads = []
    for n in reversed(volume.shape[-3:]):
        before = (size - n) // 2
        pads += [before, size - n - before]
    return F.pad(volume, pads)


def volume_to_slices(cube: Tensor, plane: str = "axial") -> Tensor:
    """Cut a volume (x, y, z) into the batch of its slices (n, 1, rows, columns).

    The axis is *moved*, not reshaped: `cube.reshape(n, 1, ...)` has the same shape and cuts every slice into pieces.
    """
    return cube.movedim(AXES[plane], 0).unsqueeze(1)


def slices_to_volume(slices: Tensor, plane: str = "axial") -> Tensor:
    """Undo `volume_to_slices`."""
    return slices.squeeze(1).movedim(0, AXES[plane])


def deform(volumes: Tensor, generator: torch.Generator) -> Tensor:
    """Make another head of each one (b, 1, x, y, z).

    Axial slices are scaled, sheared, turned, shifted and bent a little.

    A slice-VAE that sees 64 heads as they are learns them by heart: held out, its squared error was half as large again as in
    training. The bend varies from slice to slice, smoothly. Cubic interpolation, which blurs little; zero outside.
    """
    b, n = len(volumes), volumes.shape[-1]
    draws = (torch.randn(b, 2, *shape, generator=generator) for shape in ((2,), (1,), (5, 5, 5)))
    linear, shift, bend = (draw.to(volumes.device) for draw in draws)
    # a shift of 1 is half the field of view
    affine = torch.cat([torch.eye(2, device=volumes.device) + 0.05 * linear, 0.03 * shift], 2)
    bend = F.interpolate(0.025 * bend, volumes.shape[-3:], mode="trilinear")
    slices = volumes.movedim(-1, 1).flatten(0, 1)
    grid = F.affine_grid(affine.repeat_interleave(n, 0), list(slices.shape), align_corners=False)
    grid = grid + bend.permute(0, 4, 2, 3, 1).flatten(0, 1)
    bent = F.grid_sample(slices, grid, mode="bicubic", align_corners=False).clip(0, 1)
    return bent.unflatten(0, (b, n)).movedim(1, -1)


def choose(slices: Tensor, which: str) -> Tensor:
    """Choose the slices of a volume (n, 1, rows, columns) that a step trains on.

    "all", the paper's batch; "first 32", as its batch-size study keeps them; "spread 32", evenly over the volume; or
    "random 32" of those that are not blank: more and cheaper steps of the same kind, for a laptop.
    Raises ValueError for another choice or for more slices than there are.
    """
    if which == "all":
        return slices
    how, _, k = which.partition(" ")
    if how not in ("first", "spread", "random") or not k.isdigit() or not 0 < int(k) <= len(slices):
        raise ValueError(
            f"slices {which!r}: use 'all', 'first k', 'spread k' or 'random k' with k from 1 to {len(slices)}"
        )
    count = int(k)
    if how == "first":
        return slices[:count]
    if how == "spread":
        return slices[torch.arange(count) * len(slices) // count]
    filled = slices[slices.flatten(1).any(1)]
    return filled[torch.randperm(len(filled))[:count]]


def kept(slices: Tensor, which: str) -> Tensor:
    """Choose the slices that a model trained on ``which`` is used on afterwards.

    They are all slices unless its study left some out.
    """
    return choose(slices, which) if which.startswith(("first", "spread")) else slices


def images(volumes: Tensor, settings: SliceVAESettings, select: Callable[[Tensor, str], Tensor] = kept) -> Tensor:
    """Return what a slice-VAE sees of volumes (b, 1, x, y, z).

    In 3D these are cubes (b, 1, N, N, N), in 2D their slices (b n, 1, N, N).
    """
    cubes = to_cube(volumes, settings.size)
    if settings.dims == 3:
        return cubes
    return torch.cat([select(volume_to_slices(cube[0], settings.plane), settings.slices) for cube in cubes])


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Return KL(N(mu, sigma^2) || N(0, I)) of every element.

    It is $\tfrac12(\mu^2 + \sigma^2 - \log\sigma^2 - 1)$.
    """
    return (mean.square() + log_variance.exp() - log_variance - 1) / 2


def printed_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Return KL(N(0, I) || N(mu, sigma^2)), as equation 1 prints it.

    It is $\tfrac12((1 + \mu^2)/\sigma^2 + \log\sigma^2 - 1)$.
    """
    return ((1 + mean.square()) * (-log_variance).exp() + log_variance - 1) / 2


LOSSES = {  # which KL; whether the error is the norm (True) or its square
    "elbo": (gaussian_kl, False),
    "reversed": (printed_kl, False),
    "unsquared": (gaussian_kl, True),
    "printed": (printed_kl, True),
}


class SliceVAE(Algorithm):
    r"""The slice-VAE on whole volumes (equation 1).

    Its loss is the sum of squared errors plus ``kl_weight`` times KL(q(z | x) || N(0, I)), a mean over slices.

    Eq. (1) is misprinted twice: it has KL(N(0, I) || q), which is not that of the evidence lower bound, and a norm without
    its square. ``loss`` "elbo" is what a VAE minimises; "reversed" and "unsquared" have one misprint each; "printed" has both.
    """

    settings: SliceVAESettings
    reads = ("y", "mask")  # of a sample

    def __init__(self, settings: SliceVAESettings) -> None:
        if settings.loss not in LOSSES:
            raise ValueError(f"loss {settings.loss!r} is unknown; use one of {tuple(LOSSES)}")
        self.settings = settings
        vae = VAE(settings.size, settings.dims, settings.norm, settings.width)
        # the memory layout changes no number's meaning, but makes convolutions a third faster on a CPU
        vae.to(memory_format={2: torch.channels_last, 3: torch.channels_last_3d}[settings.dims])
        self.networks = {"vae": vae}
        self.optimisers = {"vae": torch.optim.Adam(vae.parameters(), settings.learning_rate)}

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Flip each T1 left to right with probability 1/2, and deform it.

        Heads are nearly symmetric.
        """
        flips = torch.rand(len(batch["y"]), generator=generator) < 0.5
        flipped = torch.stack([v.flip(1) if f else v for v, f in zip(batch["y"], flips, strict=True)])
        return {"y": deform(flipped, generator)}

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Take one step on y (b, 1, x, y, z) in [0, 1]; return loss, squared error and KL."""
        losses = self.losses(images(batch["y"], self.settings, choose))
        self.optimisers["vae"].zero_grad(set_to_none=True)
        run.backward(losses["loss"])
        self.optimisers["vae"].step()
        return {name: loss.detach() for name, loss in losses.items()}

    def losses(self, x: Tensor) -> Losses:
        """Return equation 1 on images (n, 1, ...), summed over an image, averaged over the n."""
        x_hat, mean, log_variance = self.networks["vae"](x)
        sse = (x_hat - x).square().flatten(1).sum(1)
        divergence, unsquared = LOSSES[self.settings.loss]
        kl = divergence(mean, log_variance).flatten(1).sum(1).mean()
        error = sse.sqrt() if unsquared else sse
        return {"loss": error.mean() + self.settings.kl_weight * kl, "sse": sse.mean(), "kl": kl}

    def validate(self, batch: Batch) -> Losses:
        """Return the squared error of reconstructions from mean codes, inside the brain."""
        x, inside = images(batch["y"], self.settings), images(batch["mask"].float(), self.settings) > 0
        vae = self.networks["vae"]
        x_hat = vae.decoder(vae.encoder(x)[0])
        squared = ((x_hat - x).square() * inside).sum()
        return {"brain_mse": squared / inside.sum().clip(1)}  # 0 where no brain is visible
