"""A Gaussian over the slices of a volume, to sample whole volumes from a slice-VAE (Volokitin et al. 2020; the paper's [18])."""

import numpy as np
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import nn

from medsynth_lib.settings import SliceVAESettings
from medsynth_lib.training.adaptation import posterior
from medsynth_lib.training.svae import images, slices_to_volume

COMPONENTS = 64  # P of Volokitin et al.


class SliceModel:
    r"""Hold, for each latent coordinate, mean and covariance of its values ACROSS the slices of a volume.

    The coordinate $l$ has mean $m_l$ and covariance $\Sigma_l$. With the centred codes of n volumes
    $C_l$ (n, slices) $= U S V^T$, a sample is $y_l = m_l + A_l \epsilon$ with $A_l = V_P S_P / \sqrt{n}$,
    $\epsilon \sim N(0, I_P)$ and P = 64. $\Sigma_l$ is shrunk after Ledoit & Wolf (2004): a share of it (`shrinkage`)
    gives way to a multiple of the identity with the same trace, which is drawn slice by slice.

    Args:
        codes: (n, slices, channels, 2, 2), mean codes of training volumes, in units of the prior's standard deviation, 1.

    Raises:
        ValueError: there are fewer than two volumes, which have no covariance.
    """

    def __init__(self, codes: torch.Tensor):
        if len(codes) < 2:
            raise ValueError(f"codes of {len(codes)} volume(s): a covariance across slices needs at least two")
        self.shape = codes.shape[1:]
        values = codes.flatten(2).permute(2, 0, 1).double()  # (coordinates, N, slices)
        self.mean = values.mean(1)
        centred = values - self.mean[:, None]
        _, s, vt = torch.linalg.svd(centred, full_matrices=False)
        p = min(COMPONENTS, s.shape[1])
        self.factor = vt[:, :p].transpose(1, 2) * s[:, None, :p] / len(codes) ** 0.5  # A_l: (coordinates, slices, p)
        shrinkage = [ledoit_wolf_shrinkage(c.numpy(), assume_centered=True) for c in centred]
        self.shrinkage = torch.from_numpy(1.0 * np.array(shrinkage))  # of two volumes each share is the integer 1
        self.variance = centred.square().mean((1, 2))  # of the identity that is shrunk to

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draw codes (n, slices, channels, 2, 2) of n volumes, float32."""
        coordinates, slices, p = self.factor.shape
        epsilon = torch.randn(n, coordinates, p, generator=generator, dtype=torch.float64)
        white = torch.randn(n, coordinates, slices, generator=generator, dtype=torch.float64)
        keep, spread = (1 - self.shrinkage).sqrt()[:, None], (self.shrinkage * self.variance).sqrt()[:, None]
        drawn = (self.factor @ epsilon.permute(1, 2, 0)).permute(2, 0, 1)  # not broadcast: that copies A_l n times
        values = self.mean + keep * drawn + spread * white
        return values.permute(0, 2, 1).reshape(n, *self.shape).float()

    def correlation(self) -> torch.Tensor:
        """Average the correlation between slices over the coordinates: (slices, slices)."""
        covariance = self.factor @ self.factor.transpose(1, 2)
        sd = covariance.diagonal(dim1=1, dim2=2).clip(1e-12).sqrt()
        return (covariance / (sd[:, :, None] * sd[:, None])).mean(0)


@torch.no_grad()
def mean_codes(encoder: nn.Module, volumes: torch.Tensor, settings: SliceVAESettings) -> torch.Tensor:
    """Encode volumes (b, 1, x, y, z) to mean codes (b, slices, channels, 2, 2), on the CPU."""
    encoder.eval()
    return torch.cat([posterior(encoder, volume[None], settings)[0].cpu() for volume in volumes])


@torch.no_grad()
def decode_volumes(decoder: nn.Module, codes: torch.Tensor, plane: str = "axial") -> torch.Tensor:
    """Decode volumes; the slices of each are decoded as one batch.

    Args:
        decoder: of a slice-VAE.
        codes: (n, slices, channels, 2, 2).
        plane: that the slices lie in.

    Returns:
        (n, x, y, z) in [0, 1], on the CPU.
    """
    decoder.eval()
    codes = codes.to(next(decoder.parameters()).device)
    return torch.stack([slices_to_volume(decoder(each), plane) for each in codes]).clip(0, 1).cpu()


@torch.no_grad()
def reconstruct(vae: nn.Module, volumes: torch.Tensor, settings: SliceVAESettings) -> tuple[torch.Tensor, torch.Tensor]:
    """Send volumes through a VAE's mean codes and back.

    Args:
        vae: a slice-VAE or its 3D twin.
        volumes: (b, 1, x, y, z).
        settings: which the VAE was trained with.

    Returns:
        The volumes, padded, and their reconstructions, both (b, N, N, N), or of the slices alone that the settings choose.
    """
    vae.eval()
    pairs, device = [], next(vae.parameters()).device
    for volume in volumes:
        x = images(volume[None], settings)
        both = x, vae.decoder(vae.encoder(x.to(device))[0]).cpu()
        pairs.append([v if settings.dims == 3 else slices_to_volume(v, settings.plane) for v in both])
    return tuple(torch.stack([part.reshape(part.shape[-3:]) for part in parts]) for parts in zip(*pairs, strict=True))
