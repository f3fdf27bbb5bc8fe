"""The 3D pix2pix of the adaptation paper (section 3, 'Configuration', and Fig. 2): generator and PatchGAN discriminator.

The paper says four down-sampling stages and leaves the layers open; here there are three, as in the public code. At
base width 64 generator and discriminator have as many parameters as the public code's: 2,113,953 and 540,737. The
discriminator is the same function. The generator is another graph: the public dense block normalises its input and
its sums before each norm, and its scalings start from N(0, 1).
"""

import torch
import torch.nn.functional as F
from torch import nn

from medsynth_lib.models.few_channels import FromFewChannels, ToFewChannels

CONVOLVED, TOGETHER = 16, 4  # channels that `FirstBlock` makes at a time, and that `ByChannels` works on at a time


class Normalise(nn.Module):
    """Instance norm without affine parameters, then ReLU. A single voxel has no variance: it only gets the ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x[0, 0].numel() == 1:
            return F.relu(x)
        return F.relu(F.instance_norm(x), inplace=True)


def kaiming_init(network: nn.Module) -> None:
    """Set first weights as the public code does: Kaiming normal, biases 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class DenseShortcut(nn.Module):
    """Three 3x3x3 convolutions in which every state also receives all earlier ones, scaled per channel.

    x1 = N(conv(x0)) + w01 x0;  x2 = N(conv(x1)) + w02 x0 + w12 x1;  x3 = N(conv(x2)) + w03 x0 + w13 x1 + w23 x2,
    where N is instance norm and ReLU and each w is one learned number per channel, starting at 1.
    Input and output: (batch, width, x, y, z).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for _ in range(3))
        self.weights = nn.ParameterList(torch.ones(i + 1, width, 1, 1, 1) for i in range(3))
        self.normalise = Normalise()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = [x]
        for conv, weights in zip(self.convs, self.weights, strict=True):
            new = self.normalise(conv(states[-1]))
            scaled = [w * s for w, s in zip(weights, states, strict=True)]
            states.append(new + sum(scaled[1:], start=scaled[0]))
        return states[-1]


class Generator(nn.Module):
    """FLAIR and T2 to T1: three stride-2 stages, dense blocks, skip connections at 1/2 and 1/4 resolution, sigmoid.

    Input (batch, inputs, x, y, z) of any size, output (batch, 1, x, y, z) in [0, 1]. Sizes that are not multiples of 8
    are padded by repeating the border and cropped again. The last stage has eight channels at every width, because
    fewer, each of them normalised, cannot carry an image.

    Args:
        inputs: contrasts.
        width: channels; public code: 64.
    """

    LAST = 8

    def __init__(self, inputs: int = 2, width: int = 64) -> None:
        super().__init__()

        def down(channels: int) -> nn.Module:  # halves the resolution
            return nn.Sequential(nn.Conv3d(channels, width, 4, stride=2, padding=1), Normalise())

        def up(channels: int) -> nn.Module:  # doubles it
            return nn.Sequential(
                nn.ConvTranspose3d(width, channels, 3, stride=2, padding=1, output_padding=1), Normalise()
            )

        def merge() -> nn.Module:  # skip connection and the path from below
            return nn.Conv3d(2 * width, width, 1)

        self.down1, self.down2, self.down3 = down(inputs), down(width), down(width)
        self.at_eighth = nn.Sequential(DenseShortcut(width), Normalise(), up(width))
        self.at_quarter = nn.Sequential(merge(), DenseShortcut(width), Normalise(), up(width))
        self.at_half = nn.Sequential(
            merge(), DenseShortcut(width), Normalise(), DenseShortcut(width), Normalise(), up(self.LAST)
        )
        # the public model normalises twice before its last layer; the second time changes only the scale
        self.out = nn.Sequential(Normalise(), nn.Conv3d(self.LAST, 1, 3, padding=1), nn.Sigmoid())
        kaiming_init(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2:]
        x = pad_to_multiple(x, 8)
        x2 = self.down1(x)  # (batch, width, x/2, y/2, z/2)
        x4 = self.down2(x2)
        x8 = self.at_eighth(self.down3(x4))  # up again to 1/4
        x4 = self.at_quarter(torch.cat([x8, x4], 1))  # up to 1/2
        x2 = self.at_half(torch.cat([x4, x2], 1))  # up to full resolution, 8 channels
        return self.out(x2)[..., : size[0], : size[1], : size[2]]


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeat the border voxels at the far end of each axis until its length is a multiple."""
    z, y, x_ = ((-n) % multiple for n in reversed(x.shape[2:]))
    return F.pad(x, (0, z, 0, y, 0, x_), mode="replicate") if z or y or x_ else x


class BlurPool(nn.Module):
    """Anti-aliased halving: [1, 2, 1]/4 along every axis, then every second voxel (Zhang 2019, arXiv:1904.11486)."""

    def __init__(self) -> None:
        super().__init__()
        k = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.einsum("i,j,k->ijk", k, k, k)[None, None], persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 3, 3, 3)
        return F.conv3d(F.pad(x, [1] * 6, mode="reflect"), kernel, stride=2, groups=x.shape[1])


class LeakyNormalise(Normalise):
    """Instance norm without affine parameters, then leaky ReLU with slope 0.2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(F.instance_norm(x), 0.2, inplace=True)


class ByChannels(nn.Sequential):
    """Layers in which channels do not meet, applied to a few channels at a time.

    The result is the same to the bit. On a CPU it is faster: what the layers hand on stays in the cache, and no memory
    of a whole volume's features is asked from the system and given back at every layer.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = super().forward
        return torch.cat([layers(part) for part in x.split(TOGETHER, 1)], 1) if x.device.type == "cpu" else layers(x)


class FirstBlock(nn.Module):
    """The block of D at full resolution: convolution, instance norm, leaky ReLU and halving.

    Returns the features behind the convolution, in parts of some channels each, and the features behind the block. On a
    CPU a part is smaller than what the system takes back at once, which makes the block faster.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(channels, width, 4, padding=1)
        self.rest = ByChannels(LeakyNormalise(), BlurPool())

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        if x.device.type == "cpu":
            kernels = zip(self.convolution.weight.split(CONVOLVED), self.convolution.bias.split(CONVOLVED), strict=True)
            parts = [FromFewChannels.apply(x, weight, bias) for weight, bias in kernels]
        else:
            parts = [self.convolution(x)]
        return parts, torch.cat([self.rest(part) for part in parts], 1)


class Discriminator(nn.Module):
    """Conditional 3D PatchGAN with one strided level: sees inputs and (real or synthetic) target as channels.

    Input (batch, channels, x, y, z). Returns the logits, one a patch; the features behind the three blocks, finest first;
    and those behind the first convolution, in parts of some channels each.

    Args:
        channels: contrasts, inputs and target.
        width: of every layer; public code: 64.
    """

    def __init__(self, channels: int = 3, width: int = 64) -> None:
        super().__init__()

        def block() -> nn.Module:
            return nn.Sequential(nn.Conv3d(width, width, 4, padding=1, bias=False), ByChannels(LeakyNormalise()))

        self.first, self.second, self.third = FirstBlock(channels, width), block(), block()
        self.logits = ToFewChannels(width, 1)
        kaiming_init(self)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        parts, one = self.first(x)
        two = self.second(one)
        three = self.third(two)
        return self.logits(three), [one, two, three], parts
