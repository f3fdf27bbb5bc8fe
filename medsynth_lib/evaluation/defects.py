"""Planted defects of known size: what a score of sets must notice before it is believed (HA-GAN paper, Table II).

A defect takes volumes (n, 1, N, N, N) in [-1, 1] and a size, and returns volumes of the same shape. At size 0 nothing
changes. `experiments.detection` finds the size from which on a score notices one.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from medsynth_lib.data.simulation.fields import gaussian_blur


def blurred(volumes: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur volumes with a Gaussian of ``sigma`` voxels."""
    if sigma == 0:
        return volumes
    return torch.stack([gaussian_blur(volume, (sigma,) * 3) for volume in volumes])


def noisy(volumes: torch.Tensor, sigma: float, seed: int = 0) -> torch.Tensor:
    """Add white noise of standard deviation ``sigma`` (the range is 2) and cut to [-1, 1]."""
    noise = torch.randn(volumes.shape, generator=torch.Generator().manual_seed(seed))
    return (volumes + sigma * noise).clip(-1, 1) if sigma else volumes


def slab_shifted(volumes: torch.Tensor, voxels: int, depth: int) -> torch.Tensor:
    """Shift the middle slab of ``depth`` slices along the second axis, as in a torn body."""
    start = (volumes.shape[2] - depth) // 2
    shifted = volumes.clone()
    shifted[:, :, start : start + depth] = volumes[:, :, start : start + depth].roll(voxels, 3)
    return shifted


def with_copies(volumes: torch.Tensor, share: float, training: torch.Tensor) -> torch.Tensor:
    """Put training volumes in the place of a share of the volumes: memorisation of known size."""
    copies = min(round(share * len(volumes)), len(training))
    return torch.cat([training[:copies], volumes[copies:]])


def without_mode(volumes: torch.Tensor, share: float, factor: Sequence[float]) -> torch.Tensor:
    """Drop the share of volumes with the largest ``factor``; others are repeated instead."""
    order = np.argsort(np.asarray(factor), kind="stable")
    kept = order[: len(order) - round(share * len(order))]
    return volumes[np.resize(kept, len(order))]


def other_contrast(volumes: torch.Tensor, strength: float) -> torch.Tensor:
    """Raise intensities to the power 1 + ``strength``: a contrast of another scanner.

    Black and white stay.
    """
    return 2 * ((volumes + 1) / 2).clip(0, 1) ** (1 + strength) - 1


def smaller_structure(volumes: torch.Tensor, share: float, labels: torch.Tensor, label: int) -> torch.Tensor:
    """Shrink a structure's volume by a share, towards its centre.

    The tissue around it is stretched to follow.

    Args:
        volumes: (n, 1, N, N, N).
        share: of the volume that is lost, from 0 to 0.7; beyond, the stretched tissue would fold.
        labels: (n, N, N, N), integers.
        label: of the structure.
    """
    if not 0 <= share <= 0.7:
        raise ValueError(f"share {share}: a structure can lose 0 to 0.7 of its volume here")
    if share == 0:
        return volumes
    return torch.cat([_shrunk(v[None], one == label, share) for v, one in zip(volumes, labels, strict=True)])


def _shrunk(volume: torch.Tensor, inside: torch.Tensor, share: float) -> torch.Tensor:
    """Resample a volume (1, 1, N, N, N) about the centre of a structure.

    The change fades out at twice the structure's radius.
    """
    where = inside.nonzero().double()
    if len(where) == 0:
        return volume
    n = torch.tensor(volume.shape[2:]).double()
    centre, half_axes = where.mean(0), 5**0.5 * where.std(0).clip(min=1)  # of the ellipsoid with these moments
    axes = torch.meshgrid(*(torch.arange(int(k)).double() for k in n), indexing="ij")
    offset = torch.stack(axes, -1) - centre
    radius = (offset / half_axes).norm(dim=-1)
    fade = (2 - radius).clip(0, 1)[..., None]  # 1 inside the structure's ellipsoid, 0 from twice its radius on
    source = centre + offset * (1 + ((1 - share) ** (-1 / 3) - 1) * fade)
    grid = (2 * source / (n - 1) - 1).flip(-1)[None].to(volume)
    return F.grid_sample(volume, grid, mode="bilinear", padding_mode="border", align_corners=True)
