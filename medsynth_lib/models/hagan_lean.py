"""HA-GAN's networks in less time and memory, with the same mathematics: each lever beside the plain form that it equals.

Up-sampling: nearest neighbour x 2 followed by a 3-tap convolution [a, b, c] is one transposed convolution of stride 2 with the
taps [c, b + c, a + b, a] along each axis. The up-sampled tensor, eight times the size, is never built, and every output needs 8
products of the 27 instead of all. Equal to rounding (tests/test_hagan.py).
"""

import torch
import torch.nn.functional as F
from torch import nn

TAPS = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])  # [a, b, c] to [c, b + c, a + b, a]
EXPAND = torch.kron(torch.kron(TAPS, TAPS), TAPS)  # 27 taps in 3D to 64
SMALLEST = 8  # voxels of an input along an axis: below that the plain form is faster


class UpConv3d(nn.Conv3d):
    """nearest x 2, then conv3, with the same parameters, as one transposed convolution."""

    def forward(self, x):
        if x.shape[-1] < SMALLEST:
            return super().forward(F.interpolate(x, scale_factor=2))
        kernel = (self.weight.flatten(2) @ EXPAND.to(self.weight).T).unflatten(2, (4, 4, 4)).transpose(0, 1)
        return F.conv_transpose3d(x, kernel, self.bias, stride=2, padding=1)


def make_lean(network):
    """Replace, in place, every up-sampling with the convolution behind it; names and parameters stay as they are."""
    for module in network.modules():
        children = list(module.named_children())
        for (name, up), (_, conv) in zip(children[:-1], children[1:], strict=True):
            if isinstance(up, nn.Upsample) and type(conv) is nn.Conv3d:
                setattr(module, name, nn.Identity())
                conv.__class__ = UpConv3d
