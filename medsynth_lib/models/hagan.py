"""HA-GAN's networks (Sun et al., section II; Table I names them): a volume of S^3 voxels by way of features of (S/4)^3.

The paper's layer list is in a supplement. This one has the parameter counts of the authors' public models and of Table VIII:
74.75, 78.67, 79.58 and 79.74 million at S = 32, 64, 128 and 256. One rule gives every size: features grow from 4^3 to
(S/4)^3, and encoders and discriminators drop their outermost levels where S is smaller.

In shape comments b is the batch, s = S/4, and d the slices of a sub-volume.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

SIZES = (32, 64, 128, 256, 512)  # voxels along each axis; 512 is ours
FRACTIONS = (1 / 8, 1 / 4, 1 / 2)  # of the slices in a sub-volume, Table IX


def require_size(size: int, fraction: float = 1 / 8) -> None:
    """Check the size of a volume and the sub-volume's fraction of it.

    Raises: ValueError unless they are in `SIZES` and `FRACTIONS`.
    """
    if size not in SIZES:
        raise ValueError(f"volume size {size} is not one of {SIZES}; resize the volumes")
    if fraction not in FRACTIONS:
        raise ValueError(f"sub-volume fraction {fraction} is not one of 1/8, 1/4, 1/2")


def levels(size: int) -> int:
    """Count the halvings from S/4 to 4 voxels: 1, 2, 3, 4, 5 for the five sizes."""
    return size.bit_length() - 5


def halved_to(widest: int, count: int) -> list[int]:
    """List ``count`` widths, each twice the one before, that end at the widest."""
    return [max(1, widest >> k) for k in reversed(range(count))]


def norm(channels: int) -> nn.Module:
    """Make a GroupNorm of at most 8 groups."""
    return nn.GroupNorm(min(8, channels), channels)


def block(c_in: int, c_out: int, up: bool = False, norm: Callable[[int], nn.Module] = norm) -> nn.Sequential:
    """Make [nearest x 2,] conv3, norm, ReLU."""
    layers = [nn.Conv3d(c_in, c_out, 3, padding=1), norm(c_out), nn.ReLU()]
    return nn.Sequential(nn.Upsample(scale_factor=2), *layers) if up else nn.Sequential(*layers)


def down(c_in: int, c_out: int) -> nn.Sequential:
    """Make a strided conv4, GroupNorm, ReLU, which halves every axis."""
    return nn.Sequential(nn.Conv3d(c_in, c_out, 4, stride=2, padding=1), norm(c_out), nn.ReLU())


# -- generator ------------------------------------------------------------------------------------------------------------


class Common(nn.Module):
    """G^A: a code Z to the features A that G^L and G^H share. Section II-A.

    Args:
        size: S, voxels along each axis of a volume.
        latent: length of a code, with a one-hot class behind it where there are classes.
        c: channels of the widest features at full resolution.
    """

    def __init__(self, size: int = 256, latent: int = 1024, c: int = 32):
        super().__init__()
        require_size(size)
        self.first = nn.Linear(latent, 16 * c * 4**3)
        ups = levels(size)
        widths = [16 * c] * max(1, ups - 3) + [16 * c, 8 * c, 4 * c, 2 * c]  # one more block at 512
        steps = enumerate(zip(widths[:-1], widths[1:], strict=True))
        self.blocks = nn.Sequential(block(16 * c, 16 * c), *(block(i, o, up=k < ups) for k, (i, o) in steps))

    def forward(self, z: Tensor) -> Tensor:
        z = self.first(z).unflatten(1, (-1, 4, 4, 4))  # (b, 16c, 4, 4, 4)
        return self.blocks(z)  # (b, 2c, s, s, s)


class High(nn.Module):
    """G^H: features of all slices or of a sub-volume to voxels in [-1, 1]. Equation (3)."""

    def __init__(self, c: int = 32):
        super().__init__()
        self.first = block(2 * c, c, up=True)
        self.up = nn.Upsample(scale_factor=2)
        self.last = nn.Conv3d(c, 1, 3, padding=1)

    def forward(self, a: Tensor) -> Tensor:
        a = self.up(self.first(a))  # (b, 2c, d/4, s, s) to (b, c, d, S, S)
        return torch.tanh(self.last(a))  # (b, 1, d, S, S)


class Low(nn.Module):
    """G^L: features A to the low-resolution volume X^L in [-1, 1]. Equation (2)."""

    def __init__(self, c: int = 32):
        super().__init__()
        self.layers = nn.Sequential(block(2 * c, c), block(c, c // 2), nn.Conv3d(c // 2, 1, 3, padding=1))

    def forward(self, a: Tensor) -> Tensor:
        return torch.tanh(self.layers(a))  # (b, 2c, s, s, s) to (b, 1, s, s, s)


# -- encoder --------------------------------------------------------------------------------------------------------------


class EncoderHigh(nn.Module):
    """E^H: a sub-volume to its features. Equation (6)."""

    def __init__(self, c: int = 32):
        super().__init__()
        self.layers = nn.Sequential(down(1, c), block(c, c), down(c, 2 * c))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (b, 1, d, S, S) to (b, 2c, d/4, s, s)


class EncoderGround(nn.Module):
    """E^G: the features of all sub-volumes to a code. Equation (7). Arguments as in `Common`."""

    def __init__(self, size: int = 256, latent: int = 1024, c: int = 32):
        super().__init__()
        require_size(size)
        widths = [2 * c, *halved_to(8 * c, levels(size))]  # ... 4c, 8c
        steps = zip(widths[:-1], widths[1:], strict=True)
        last = nn.Conv3d(8 * c, latent, 4)  # made first: the order of random first weights is part of a recipe
        self.layers = nn.Sequential(*(down(i, o) for i, o in steps), last)

    def forward(self, a: Tensor) -> Tensor:
        return self.layers(a).flatten(1)  # (b, 2c, s, s, s) to (b, latent)


# -- discriminators -------------------------------------------------------------------------------------------------------


class DiscriminatorLow(nn.Module):
    """D^L: a low-resolution volume to its logit, and to one more for each class. Equation (5). Arguments as in `networks`."""

    def __init__(self, size: int = 256, c: int = 32, classes: int = 0):
        super().__init__()
        require_size(size)
        widths = [1, *halved_to(8 * c, levels(size))]
        steps = zip(widths[:-1], widths[1:], strict=True)
        convolutions = [nn.Conv3d(i, o, 4, stride=2, padding=1) for i, o in steps] + [nn.Conv3d(8 * c, 1 + classes, 4)]
        self.layers = nn.ModuleList(map(spectral_norm, convolutions))
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x).flatten(1)  # (b, 1, s, s, s) to (b, 1 + classes)


class DiscriminatorHigh(nn.Module):
    """D^H: a sub-volume and its place to its logit, and to one more for each class. Equation (4).

    Arguments as in `networks`.
    """

    def __init__(self, size: int = 256, fraction: float = 1 / 8, c: int = 32, classes: int = 0):
        super().__init__()
        require_size(size, fraction)
        depth, count = int(size * fraction), levels(size) + 2
        widths = [1, *halved_to(16 * c, count)]
        convolutions = []
        for c_in, c_out in zip(widths[:-1], widths[1:], strict=True):
            kernel = 4 if depth > 4 else min(depth, 2)  # few slices are left: halve them without padding
            padding = 1 if kernel == 4 else 0
            convolutions.append(nn.Conv3d(c_in, c_out, (kernel, 4, 4), (min(depth, 2), 2, 2), (padding, 1, 1)))
            depth = max(1, depth // 2)
        convolutions.append(nn.Conv3d(16 * c, 4 * c, (depth, 4, 4)))
        self.layers = nn.ModuleList(map(spectral_norm, convolutions))
        self.activation = nn.LeakyReLU(0.2)
        self.hidden = spectral_norm(nn.Linear(4 * c + 1, 2 * c))
        self.last = spectral_norm(nn.Linear(2 * c, 1))
        self.label = spectral_norm(nn.Linear(2 * c, classes)) if classes else None

    def forward(self, x: Tensor, where: float) -> Tensor:
        """Judge a sub-volume.

        Args:
            x: (b, 1, d, S, S).
            where: r as a share of its largest value, 0 to 1.

        Returns: (b, 1 + classes).
        """
        for layer in self.layers:
            x = self.activation(layer(x))
        x = x.flatten(1)  # (b, 4c)
        x = self.activation(self.hidden(torch.cat([x, torch.full_like(x[:, :1], where)], 1)))  # (b, 2c)
        return self.last(x) if self.label is None else torch.cat([self.last(x), self.label(x)], 1)


def networks(
    size: int = 256, latent: int = 1024, c: int = 32, fraction: float = 1 / 8, classes: int = 0
) -> dict[str, nn.Module]:
    """Make all seven networks, by the paper's names.

    Args:
        size: S, voxels along each axis of a volume; one of `SIZES`.
        latent: length of a code; section II-E has 1024.
        c: channels of the widest features at full resolution; the public code has 32.
        fraction: of the slices that a sub-volume takes; one of `FRACTIONS`.
        classes: of volumes; 0 as in section II. The public code's classes follow as a one-hot vector behind the code.
    """
    return {
        "G^A": Common(size, latent + classes, c),
        "G^L": Low(c),
        "G^H": High(c),
        "D^H": DiscriminatorHigh(size, fraction, c, classes),
        "D^L": DiscriminatorLow(size, c, classes),
        "E^H": EncoderHigh(c),
        "E^G": EncoderGround(size, latent, c),
    }
