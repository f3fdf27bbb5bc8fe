"""The slice-VAE (s-VAE) of Hu, Li, Zhang, section 2 and Figs. 5-8, and its 3D twin: one graph, two numbers of dimensions.

The paper's appendix prints no layer list. This model has the parameter counts of the public one: encoder 1,726,296 and
decoder 1,576,165 for slices of 256 x 256, encoder 5,167,392 in 3D. The paper says 1.73 M and 5.17 M.
The graph is another one. Here a block halves in its second convolution, and ReLU follows the sum of its branches; the
public one halves in its first, and has LeakyReLU 0.2 on each branch before the sum. Here the decoder doubles before its
convolutions; the public one convolves first.
"""

import torch
from torch import Tensor, nn

SMALL = 20_480  # numbers beside the last axis


class Conv3d(nn.Conv3d):
    """PyTorch's CPU convolves a small volume that is alone by another algorithm, up to four times slower than two at once."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or len(x) != 1 or x[0, ..., 0].numel() > SMALL:
            return super().forward(x)
        # contiguous, as from that algorithm: `randn_like` fills in the order of memory, and so draws the same codes
        return super().forward(x.expand(2, *x.shape[1:]))[:1].contiguous()


CONV = {2: nn.Conv2d, 3: Conv3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
NORMS = ("batch", "slice")


def widths(size: int, width: int = 256) -> list[int]:
    """Return the channels at every resolution from ``size`` down to 2 voxels.

    The last is ``width``, each before it half as many, at least 4.

    Raises ValueError unless ``size`` is a power of two from 8 to 256 and ``width`` a multiple of 4.
    """
    levels = size.bit_length() - 2  # halvings from size to 2
    if size != 2 ** (levels + 1) or not 8 <= size <= 256:
        raise ValueError(f"slice size {size} is not a power of two from 8 to 256; pad or resize the slices")
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4; use {4 * max(1, round(width / 4))}")
    outer = [max(4, width // 2 ** (levels - 1 - i) // 4 * 4) for i in range(levels)]
    return [outer[0], *outer]


def convolution(dims: int, c_in: int, c_out: int, norm: str, stride: int = 1) -> nn.Sequential:
    """Make a 3-tap convolution and its norm.

    "batch" mixes all slices of the batch, "slice" sees each one alone (group norm).

    Both norms have the same parameters. The norm is the only place where the slices of a volume meet.
    """
    if norm not in NORMS:
        raise ValueError(f"norm {norm!r} is unknown; use one of {NORMS}")
    layer = BATCH_NORM[dims](c_out) if norm == "batch" else nn.GroupNorm(4, c_out)
    return nn.Sequential(CONV[dims](c_in, c_out, 3, stride, padding=1), layer)


class ResidualBlock(nn.Module):
    """Two convolutions beside one; ``stride`` 2 halves the resolution, ``scale`` 2 doubles it first. No activation at the end."""

    def __init__(self, dims: int, c_in: int, c_out: int, norm: str, stride: int = 1, scale: int = 1) -> None:
        super().__init__()
        self.scale = nn.Upsample(scale_factor=scale) if scale > 1 else nn.Identity()
        self.first = convolution(dims, c_in, c_in, norm)
        self.second = convolution(dims, c_in, c_out, norm, stride)
        self.shortcut = convolution(dims, c_in, c_out, norm, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale(x)
        return self.second(torch.relu(self.first(x))) + self.shortcut(x)


class Encoder(nn.Module):
    """q(z | x): slices (n, 1, S, S), or volumes (n, 1, S, S, S), to mean and log-variance, each (n, width, 2, 2[, 2])."""

    def __init__(self, size: int = 256, dims: int = 2, norm: str = "batch", width: int = 256) -> None:
        super().__init__()
        c = widths(size, width)
        self.stem = convolution(dims, 1, c[0], norm)
        self.blocks = nn.ModuleList(
            ResidualBlock(dims, i, o, norm, stride=2) for i, o in zip(c[:-2], c[1:-1], strict=True)
        )
        self.mean = ResidualBlock(dims, c[-2], c[-1], norm, stride=2)
        self.log_variance = ResidualBlock(dims, c[-2], c[-1], norm, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.mean(x), self.log_variance(x)


class Decoder(nn.Module):
    """p(x | z): codes (n, width, 2, 2[, 2]) to slices (n, 1, S, S) or volumes (n, 1, S, S, S): a Gaussian's mean, any value."""

    def __init__(self, size: int = 256, dims: int = 2, norm: str = "batch", width: int = 256) -> None:
        super().__init__()
        c = widths(size, width)[::-1]
        self.blocks = nn.ModuleList(
            ResidualBlock(dims, i, o, norm, scale=2) for i, o in zip(c[:-1], c[1:], strict=True)
        )
        self.last = convolution(dims, c[-1], c[-1], norm)
        self.out = CONV[dims](c[-1], 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        for block in self.blocks:
            z = torch.relu(block(z))
        return self.out(torch.relu(self.last(z)))


class VAE(nn.Module):
    """Encoder, one draw from q(z | x) and decoder: x to its reconstruction, mean and log-variance."""

    def __init__(self, size: int = 256, dims: int = 2, norm: str = "batch", width: int = 256) -> None:
        super().__init__()
        self.encoder = Encoder(size, dims, norm, width)
        self.decoder = Decoder(size, dims, norm, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()  # differentiable in mean and variance
        return self.decoder(z), mean, log_variance
