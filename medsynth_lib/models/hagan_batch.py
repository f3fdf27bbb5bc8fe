"""The discriminator D^B, which sees how much a batch varies; see `training.hagan_repaired`."""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class DiscriminatorBatch(nn.Module):
    """D^B: the standard deviation over a batch of low-resolution volumes to one logit.

    It is mini-batch discrimination (the paper's reference [45]) in its smallest form: three layers, 9,753 weights at 64^3.

    Args:
        size: S, voxels along each axis of a volume.
    """

    def __init__(self, size: int = 256) -> None:
        super().__init__()
        convolutions = (
            nn.Conv3d(1, 8, 4, stride=2, padding=1),
            nn.Conv3d(8, 16, 4, stride=2, padding=1),
            nn.Conv3d(16, 1, size // 16),
        )
        first, second, last = map(spectral_norm, convolutions)
        self.layers = nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), last)

    def forward(self, x_low: Tensor) -> Tensor:
        """Judge a batch (b, 1, S/4, S/4, S/4) as a whole; return its logit (1, 1)."""
        # The gradient is 0, not infinite, where all volumes agree.
        return self.layers(x_low.std(0, correction=0, keepdim=True)).flatten(1)
