"""4 x 4 x 4 convolutions from or to a few channels, which a CPU does slowly: it fills the missing channels up with zeros.

Here eight neighbouring voxels of each of the few channels become eight channels. The results are equal to rounding.
"""

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def to_few_channels(x: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
    """Convolve x (b, c, x, y, z) with a weight (few, c, 4, 4, 4), as `F.conv3d` does.

    A convolution of stride 2 and kernel 5 makes the eight voxels of every 2 x 2 x 2 block: (b, few 8, x/2, y/2, z/2).
    """
    sizes = [n + 2 * padding - 3 for n in x.shape[2:]]  # of the result
    shifted = [F.pad(weight, (k, 1 - k, j, 1 - j, i, 1 - i)) for i, j, k in product((0, 1), repeat=3)]
    if any(n % 2 for n in sizes):
        x = F.pad(x, [end for n in reversed(sizes) for end in (0, n % 2)])
    blocks = F.conv3d(x, torch.stack(shifted, 1).flatten(0, 1), stride=2, padding=padding)
    blocks = blocks.unflatten(1, (len(weight), 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    voxels = blocks.flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return voxels[:, :, : sizes[0], : sizes[1], : sizes[2]]


class FromFewChannels(torch.autograd.Function):
    """`F.conv3d` with padding 1 whose gradient of the input, which has few channels, is made by `to_few_channels`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv3d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = gradients[0].to(weight.dtype)  # half precision under autocast
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = to_few_channels(g, weight.flip(2, 3, 4).transpose(0, 1), padding=2)
        if ctx.needs_input_grad[1]:
            of_weight = nn.grad.conv3d_weight(x, weight.shape, g, padding=1)
            of_bias = g.sum((0, 2, 3, 4))
        return of_x, of_weight, of_bias


class ToFewChannels(nn.Conv3d):
    """A convolution with kernel 4 and padding 1 to few channels."""

    def __init__(self, channels: int, few: int) -> None:
        super().__init__(channels, few, 4, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return to_few_channels(x, self.weight, padding=1) + self.bias[:, None, None, None]
