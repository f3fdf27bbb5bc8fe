"""HA-GAN at inference: no gradients, so no selectors (sections II-B and II-C, 'Inference')."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsynth_lib.training.hagan import features, select_low


@torch.no_grad()
def encode(encoder_high: nn.Module, encoder_ground: nn.Module, x: Tensor, depth: int) -> Tensor:
    """Return codes of whole volumes: Z-hat = E^G(A-hat), section II-C 'Inference'.

    Args:
        encoder_high, encoder_ground: E^H and E^G.
        x: volumes (b, 1, S, S, S) in [-1, 1].
        depth: slices of a sub-volume, as in training.

    Returns: (b, latent).
    """
    return encoder_ground(features(encoder_high, x, depth))


@torch.no_grad()
def decode_in_parts(high: nn.Module, a: Tensor, depth: int) -> Tensor:
    """Return volumes of features by G^H on one sub-volume after the other.

    That is how (6) and (7) train it. `sample` gives G^H all of A at once, and its group norm other means and variances.

    Args:
        high: G^H.
        a: features A or A-hat (b, 2c, S/4, S/4, S/4).
        depth: slices of a sub-volume.

    Returns: (b, 1, S, S, S) in [-1, 1].
    """
    return torch.cat([high(select_low(a, t, depth)) for t in range(0, 4 * a.shape[2], depth)], 2)


@torch.no_grad()
def sample(common: nn.Module, high: nn.Module, z: Tensor) -> Tensor:
    """Return whole volumes of codes: G^H(G^A(Z)), section II-B 'Inference'.

    Args:
        common, high: G^A and G^H.
        z: codes (b, latent [+ classes]).

    Returns: (b, 1, S, S, S) in [-1, 1].
    """
    return high(common(z))


@torch.no_grad()
def sample_by_slabs(common: nn.Module, high: nn.Module, z: Tensor, slices: int = 4) -> Tensor:
    """Return what `sample` returns, to rounding, in bounded memory.

    G^H sees a few slices of A at a time. Its group norm needs the whole volume's mean and variance. So the slabs pass twice:
    once for the statistics, once to use them. A slab takes one more slice of A on either side, which the convolutions look at.

    Args:
        slices: of A, which make four times as many of the volume.
    """
    a = F.pad(common(z), (0, 0, 0, 0, 1, 1))  # beyond the volume there are zeros
    starts = range(0, a.shape[2] - 2, slices)
    _, conv, norm, _ = high.first
    up = nn.Upsample(scale_factor=2)  # also where a lean convolution does it itself

    def inner(s: int) -> Tensor:
        return without_padding(conv, up(a[:, :, s : s + slices + 2]))

    def outer(s: int) -> Tensor:
        x = normalised(inner(s), mean, deviation, norm).relu()
        if s == 0:
            x[:, :, 0] = 0
        if s + slices >= a.shape[2] - 2:
            x[:, :, -1] = 0
        return torch.tanh(without_padding(high.last, up(x)[:, :, 1:-1]))

    count, total, squares = 0, 0.0, 0.0
    for s in starts:
        groups = inner(s)[:, :, 1:-1].unflatten(1, (norm.num_groups, -1)).flatten(2).double()
        count, total, squares = count + groups.shape[2], total + groups.sum(2), squares + groups.square().sum(2)
    mean: Tensor = total / count
    deviation = (squares / count - mean.square() + norm.eps).sqrt()
    return torch.cat([outer(s) for s in starts], 2)


def without_padding(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Apply a 3-tap convolution whose output lacks the first and the last slice of its input."""
    return F.conv3d(x, conv.weight, conv.bias, padding=(0, 1, 1))


def normalised(x: Tensor, mean: Tensor, deviation: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Apply a group norm with given means and standard deviations, each (b, groups)."""
    groups = x.unflatten(1, (norm.num_groups, -1))
    mean, deviation = (v.to(x)[..., None, None, None, None] for v in (mean, deviation))
    weight, bias = (v[:, None, None, None] for v in (norm.weight, norm.bias))
    return ((groups - mean) / deviation).flatten(1, 2) * weight + bias
