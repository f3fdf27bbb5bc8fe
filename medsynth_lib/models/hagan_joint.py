"""A departure from HA-GAN's networks: E^G is the encoder of a VAE, and its codes are standardised.

Where G and E^G learn equation (7) together, the codes of real volumes need not follow N(0, I), from which samples are drawn.
`Standard` maps the one distribution to the other, in E^G and back in G^A.
"""

import torch
from torch import Tensor, nn

from medsynth_lib.models.hagan import (
    Common,
    DiscriminatorHigh,
    DiscriminatorLow,
    EncoderGround,
    EncoderHigh,
    High,
    Low,
)


class Standard(nn.Module):
    """Map an encoder's codes e to standard codes z = L^-1 (e - m), whose mean is 0 and whose covariance is I.

    Until `settle` was called, m is 0 and L is I. Then m and L L^T are the mean and the covariance of the codes that `count`
    was given. The covariance is shrunk a little towards a multiple of I. A subject counts at every visit, each time with new
    noise. If few codes were counted compared with their length, new subjects' codes have a variance above 1.
    """

    def __init__(self, latent: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("root", torch.eye(latent))  # L, lower triangular
        # Sums are of double precision, because the covariance is a difference of large numbers. "people" is the number of
        # counted codes, by the name that shipped models have.
        self.register_buffer("people", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(latent, dtype=torch.float64))
        self.register_buffer("products", torch.zeros(latent, latent, dtype=torch.float64))

    def forward(self, e: Tensor) -> Tensor:
        """Standardise an encoder's codes, (b, latent)."""
        return torch.linalg.solve_triangular(self.root, (e.to(self.mean) - self.mean).T, upper=False).T

    def own(self, z: Tensor) -> Tensor:
        """Turn standard codes back into the encoder's, (b, latent)."""
        with torch.autocast(z.device.type, enabled=False):
            return self.mean + z.to(self.mean) @ self.root.T

    @torch.no_grad()
    def count(self, e: Tensor) -> None:
        """Add drawn codes (b, latent) to the sums of which mean and covariance are made."""
        e = e.to(self.total)
        self.people += len(e)
        self.total += e.sum(0)
        self.products += e.T @ e

    @torch.no_grad()
    def settle(self) -> None:
        """Take m and L from the counted codes, and forget the counts."""
        mean = self.total / self.people
        self.mean.copy_(mean)
        covariance = self.products / self.people - torch.outer(mean, mean)
        d = len(mean)
        shrinkage = d / (d + 10 * self.people)
        round_one = covariance.trace() / d * torch.eye(d).to(mean)
        self.root.copy_(torch.linalg.cholesky(covariance.lerp(round_one, shrinkage)))
        for counter in (self.people, self.total, self.products):
            counter.zero_()


class StandardCommon(Common):
    """G^A of standard codes. A class label may follow behind the code."""

    def __init__(self, size: int = 256, latent: int = 1024, c: int = 32, classes: int = 0):
        super().__init__(size, latent + classes, c)
        self.standard, self.latent = Standard(latent), latent

    def forward(self, z: Tensor) -> Tensor:
        z = torch.cat([self.standard.own(z[:, : self.latent]), z[:, self.latent :]], 1)
        return super().forward(z)


class VariationalGround(EncoderGround):
    """E^G as the encoder of a VAE: the features of all sub-volumes to a Gaussian of codes."""

    def __init__(self, size: int = 256, latent: int = 1024, c: int = 32):
        super().__init__(size, 2 * latent, c)
        self.standard = Standard(latent)

    def forward(self, a: Tensor, posterior: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Encode features (b, 2c, S/4, S/4, S/4).

        Returns: the standardised mean code, (b, latent). With ``posterior`` mean and log variance of the encoder's own
            codes, each (b, latent).
        """
        mean, log_variance = super().forward(a).chunk(2, 1)
        return (mean, log_variance) if posterior else self.standard(mean)


def networks(
    size: int = 256, latent: int = 1024, c: int = 32, fraction: float = 1 / 8, classes: int = 0
) -> dict[str, nn.Module]:
    """Make all seven networks; arguments as in `hagan.networks`."""
    return {
        "G^A": StandardCommon(size, latent, c, classes),
        "G^L": Low(c),
        "G^H": High(c),
        "D^H": DiscriminatorHigh(size, fraction, c, classes),
        "D^L": DiscriminatorLow(size, c, classes),
        "E^H": EncoderHigh(c),
        "E^G": VariationalGround(size, latent, c),
    }
