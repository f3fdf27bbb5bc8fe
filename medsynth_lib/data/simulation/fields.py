"""Smooth random fields, Gaussian blur and sampling on torch volumes: the simulator's only numerical tools."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

WORLD_MM = 264.0  # every field lives on control points over this cube, so a seed gives the same field on any grid


def bspline_weights(x: np.ndarray, scale: float) -> torch.Tensor:
    """Return cubic B-spline weights (len(x), k) at positions for equally spaced control points.

    Args:
        x: positions in mm.
        scale: distance of the control points in mm.
    """
    u = (np.asarray(x, np.float64) + WORLD_MM / 2) / scale
    k = int(np.ceil(WORLD_MM / scale)) + 4
    d = np.abs(u[:, None] - (np.arange(k) - 1)[None])
    w = np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.where(d < 2, (2 - d) ** 3 / 6, 0))
    return torch.from_numpy(w.astype(np.float32))


def random_field(rng: np.random.Generator, axes: Sequence[np.ndarray], scale: float, channels: int = 1) -> torch.Tensor:
    """Draw a smooth random field of unit variance from cubic B-splines.

    Args:
        rng: the number of draws from it does not depend on the axes.
        axes: positions in mm along x, y and z, within +-132 mm.
        scale: correlation length in mm, approximately.
        channels: independent fields.

    Returns:
        Field (channels, x, y, z).
    """
    wx, wy, wz = (bspline_weights(a, scale) for a in axes)
    c = torch.from_numpy(rng.standard_normal((channels, *[wx.shape[1]] * 3), dtype=np.float32))
    c = torch.einsum("xi,cijk->cxjk", wx, c)
    c = torch.einsum("yj,cxjk->cxyk", wy, c)
    c = torch.einsum("zk,cxyk->cxyz", wz, c)
    return c / (151 / 315) ** 1.5  # each axis: mean over phase of the sum of squared weights is 151/315


def gaussian_blur(volume: torch.Tensor, sigma: Sequence[float]) -> torch.Tensor:
    """Blur (c, x, y, z) with a separable Gaussian.

    Args:
        volume: (c, x, y, z).
        sigma: one an axis, in voxels; an axis below 0.2 is left alone.
    """
    for axis, s in enumerate(sigma):
        if s < 0.2:
            continue
        i = torch.arange(volume.shape[axis + 1], dtype=torch.float32)
        kernel = torch.exp(-0.5 * ((i[:, None] - i[None]) / s) ** 2)
        kernel /= kernel.sum(1, keepdim=True)
        volume = torch.einsum("ij," + ("cjyz->ciyz", "cxjz->cxiz", "cxyj->cxyi")[axis], kernel, volume)
    return volume


def sample(
    volume: torch.Tensor, world_to_voxel: np.ndarray, coords: torch.Tensor, mode: str = "bilinear"
) -> torch.Tensor:
    """Sample a volume at world coordinates; outside it the border value goes on.

    Args:
        volume: (c, X, Y, Z).
        world_to_voxel: matrix (4, 4) from mm to voxels.
        coords: positions (3, x, y, z) in mm.
        mode: "bilinear" (trilinear in 3D) or "nearest".
    """
    n = torch.tensor(volume.shape[1:], dtype=torch.float32)
    m = torch.as_tensor(world_to_voxel, dtype=torch.float32)
    m = m[:3] * (2 / (n - 1))[:, None]  # voxel index -> [-1, 1] as grid_sample wants it
    grid = torch.einsum("ij,jxyz->xyzi", m[:, :3].flip(0), coords) + (m[:, 3] - 1).flip(0)
    return F.grid_sample(volume[None], grid[None], mode=mode, align_corners=True, padding_mode="border")[0]
