"""The networks that HA-GAN is compared with (Sun et al., section IV): WGAN, VAE-GAN, alpha-GAN and Progressive GAN in 3D.

Published, at 64^3: Kwon et al. 2019 (its reference [6]), whose four doublings 512-256-128-64-1 the first three share; latent
1000, batch norm, strided critics with 4-voxel kernels. Sun et al. run them up to 256^3 and do not say how they grow. Ours, one
rule for every size: the finest level keeps ``width`` channels, each coarser one has twice as many up to ``widest``, and a
doubling of the size adds one level. ``width`` 64 keeps the published layers and adds 512-512 blocks at 4^3; 64 * 64 / S goes on
halving instead.
Progressive GAN (Karras et al. 2018) is published in 2D; the 3D form and its width of 16 at the finest level are ours.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsynth_lib.models.hagan import block


def widths(size: int, width: int = 64, widest: int = 512) -> list[int]:
    """Return the channels from 4^3 to (S/2)^3, coarse to fine.

    Raises: ValueError unless the size is a power of two from 8.
    """
    if size < 8 or size & (size - 1):
        raise ValueError(f"volume size {size} is not a power of two from 8; resize the volumes")
    return [min(widest, width << k) for k in reversed(range(size.bit_length() - 3))]


# -- WGAN, VAE-GAN, alpha-GAN --------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    """Codes (b, latent) to volumes (b, 1, S, S, S) in [-1, 1]: 4^3, [nearest x 2, conv3, batch norm, ReLU], last tanh."""

    def __init__(self, size: int = 64, latent: int = 1000, width: int = 64, widest: int = 512) -> None:
        super().__init__()
        channels = widths(size, width, widest)
        self.first = nn.Sequential(nn.ConvTranspose3d(latent, channels[0], 4), nn.BatchNorm3d(channels[0]), nn.ReLU())
        pairs = zip(channels[:-1], channels[1:], strict=True)
        self.blocks = nn.Sequential(*(block(i, o, up=True, norm=nn.BatchNorm3d) for i, o in pairs))
        self.last = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv3d(width, 1, 3, padding=1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.last(self.blocks(self.first(z[..., None, None, None])))


class Critic(nn.Module):
    """Volumes (b, 1, S, S, S) to (b, outputs): [conv4 stride 2, batch norm, LeakyReLU] down to 4^3, conv4. As published, it has
    batch norm, which Gulrajani et al. advise against where a gradient penalty is taken; with ``outputs`` = latent an encoder.
    """

    def __init__(self, size: int = 64, outputs: int = 1, width: int = 64, widest: int = 512) -> None:
        super().__init__()
        channels = widths(size, width, widest)[::-1]
        layers = [nn.Sequential(nn.Conv3d(1, width, 4, 2, 1), nn.LeakyReLU(0.2))]
        for i, o in zip(channels[:-1], channels[1:], strict=True):
            layers.append(nn.Sequential(nn.Conv3d(i, o, 4, 2, 1), nn.BatchNorm3d(o), nn.LeakyReLU(0.2)))
        self.features = nn.Sequential(*layers)
        self.last = nn.Conv3d(channels[-1], outputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x)).flatten(1)


class CodeCritic(nn.Module):
    """Codes (b, latent) to a score (b, 1): two hidden layers. Published with batch norm, which a batch of one cannot have."""

    def __init__(self, latent: int = 1000, hidden: int = 4096) -> None:
        super().__init__()
        sizes = (latent, hidden, hidden)
        hiddens = (nn.Sequential(nn.Linear(i, o), nn.LeakyReLU(0.2)) for i, o in zip(sizes, sizes[1:], strict=False))
        self.layers = nn.Sequential(*hiddens, nn.Linear(hidden, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


class GaussianEncoder(nn.Module):
    """Volumes (b, 1, S, S, S) to mean and log-variance (b, latent): the critic's layers and two heads with a hidden layer each
    (published with batch norm, see `CodeCritic`).
    """

    def __init__(self, size: int = 64, latent: int = 1000, width: int = 64, widest: int = 512) -> None:
        super().__init__()
        self.features = Critic(size, 1, width, widest).features
        flat, hidden = 64 * widths(size, width, widest)[0], 4 * widest
        heads = (nn.Sequential(nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, latent)) for _ in range(2))
        self.mean, self.log_variance = heads

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.features(x).flatten(1)
        return self.mean(x), self.log_variance(x)


# -- Progressive GAN -----------------------------------------------------------------------------------------------------------


class EqualConv3d(nn.Conv3d):
    r"""A convolution whose weights are N(0, 1) and scaled by $\sqrt{2/n}$ (n inputs) at every use: equalised learning rate."""

    def __init__(self, c_in: int, c_out: int, kernel: int, padding: int = 0) -> None:
        super().__init__(c_in, c_out, kernel, padding=padding)
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)
        self.scale = math.sqrt(2 / self.weight[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.scale, self.bias)


class PixelNorm(nn.Module):
    """Every voxel's features divided by their root mean square."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def equal(
    c_in: int, c_out: int, kernel: int = 3, padding: int = 1, norm: type[nn.Module] = nn.Identity
) -> nn.Sequential:
    """Make an equalised convolution, LeakyReLU and a norm."""
    return nn.Sequential(EqualConv3d(c_in, c_out, kernel, padding), nn.LeakyReLU(0.2), norm())


def twice(x: Tensor) -> Tensor:
    """Double the size of volumes (b, c, x, y, z) by nearest neighbours."""
    return F.interpolate(x, scale_factor=2)


class GrowingGenerator(nn.Module):
    """Codes (b, latent) to volumes of stage k, (b, 1, 4 * 2^k, ...), k = 0 to the full size. While stage k fades in, the image is
    a mix: (1 - alpha) of stage k - 1, enlarged, and alpha of its own (Karras et al., Fig. 2). No tanh, as published.
    """

    def __init__(self, size: int = 64, latent: int = 1000, width: int = 16, widest: int = 512) -> None:
        super().__init__()
        channels = widths(2 * size, width, widest)
        self.norm, c = PixelNorm(), channels[0]
        self.first = nn.Sequential(equal(latent, c, 4, 3, PixelNorm), equal(c, c, norm=PixelNorm))
        pairs = zip(channels[:-1], channels[1:], strict=True)
        blocks = (nn.Sequential(equal(i, o, norm=PixelNorm), equal(o, o, norm=PixelNorm)) for i, o in pairs)
        self.blocks = nn.ModuleList(blocks)
        self.to_image = nn.ModuleList(EqualConv3d(c, 1, 1) for c in channels)

    def forward(self, z: Tensor, stage: int | None = None, alpha: float = 1.0) -> Tensor:
        stage = len(self.blocks) if stage is None else stage
        x = self.first(self.norm(z)[..., None, None, None])
        for layer in self.blocks[:stage]:
            before, x = x, layer(twice(x))
        image = self.to_image[stage](x)
        return image if stage == 0 or alpha == 1 else torch.lerp(twice(self.to_image[stage - 1](before)), image, alpha)


class ShrinkingCritic(nn.Module):
    """Volumes of stage k to a score (b, 1): the mirror image of the generator, with the same mix; it sees how much the volumes
    of a batch differ as one more channel at 4^3.
    """

    def __init__(self, size: int = 64, width: int = 16, widest: int = 512) -> None:
        super().__init__()
        channels = widths(2 * size, width, widest)
        self.from_image = nn.ModuleList(equal(1, c, 1, 0) for c in channels)
        pairs = zip(channels[:-1], channels[1:], strict=True)
        self.blocks = nn.ModuleList(nn.Sequential(equal(i, i), equal(i, o), nn.AvgPool3d(2)) for o, i in pairs)
        c = channels[0]
        self.last = nn.Sequential(equal(c + 1, c), equal(c, c, 4, 0), EqualConv3d(c, 1, 1))

    def forward(self, x: Tensor, stage: int | None = None, alpha: float = 1.0) -> Tensor:
        stage = len(self.blocks) if stage is None else stage
        if stage == 0:
            return self.judge(self.from_image[0](x))
        own = self.blocks[stage - 1](self.from_image[stage](x))
        if alpha < 1:
            own = torch.lerp(self.from_image[stage - 1](F.avg_pool3d(x, 2)), own, alpha)
        for layer in reversed(self.blocks[: stage - 1]):
            own = layer(own)
        return self.judge(own)

    def judge(self, x: Tensor) -> Tensor:
        spread = (x.var(0, correction=0) + 1e-8).sqrt().mean()
        return self.last(torch.cat([x, spread.expand_as(x[:, :1])], 1)).flatten(1)
