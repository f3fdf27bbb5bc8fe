"""How sharp are generated volumes, and does a pattern of the network's up-sampling stand in them?

Volumes are (n, 1, N, N, N) in [-1, 1]. Divide a value of generated volumes by the value of real ones.
"""

import torch
from torch import Tensor


def laplacian_energy(volumes: Tensor) -> float:
    """Return the mean square of the discrete Laplacian: small where volumes are blurred.

    Args:
        volumes: (n, 1, N, N, N); the outermost voxels have no Laplacian.
    """
    inner = (..., slice(1, -1), slice(1, -1), slice(1, -1))
    laplacian = -6 * volumes[inner]
    for axis in (-3, -2, -1):
        both = volumes.roll(1, axis) + volumes.roll(-1, axis)
        laplacian = laplacian + both[inner]
    return float(laplacian.square().mean())


def spread(volumes: Tensor) -> float:
    """Return the root mean square difference between different volumes.

    It is 0 where a generator draws one volume only.
    """
    variance = volumes.double().var(0)  # unbiased: the mean square difference of a pair is twice the variance
    return float((2 * variance).mean().sqrt())


def lattice(volumes: Tensor, period: int = 4, axis: int = -3) -> float:
    """Return the power at a period of voxels over that of its neighbours.

    It is 1 where no lattice stands out.

    Args:
        volumes: (n, 1, N, N, N), at least two, with N a multiple of the period. Their mean is taken off.
        period: in voxels; HA-GAN's features have 4 voxels.
        axis: along which the spectrum is taken; sub-volumes are cut along -3.
    """
    found = torch.fft.rfft(volumes - volumes.mean(0, keepdim=True), dim=axis).abs().square()
    power = found.movedim(axis, -1).flatten(0, -2).mean(0)
    k = volumes.shape[axis] // period
    return float(4 * power[k] / (power[k - 2] + power[k - 1] + power[k + 1] + power[k + 2]))
