"""Rivals of adaptation that only change how images look: histograms, Nyul's scale, Fourier amplitudes, blur and noise.

Volumes are (c, x, y, z) in [0, 1] with a mask (1, x, y, z); outside the mask everything stays as it is.
"""

from collections.abc import Iterable

import numpy as np
import torch
from monai.transforms import AdjustContrast, RandBiasField
from scipy import ndimage

LEVELS = np.linspace(0, 1, 257)
NYUL_LEVELS = np.array([0.0, 0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1.0])


def quantiles(
    volumes: Iterable[torch.Tensor], masks: Iterable[torch.Tensor], levels: np.ndarray = LEVELS
) -> np.ndarray:
    """Return quantiles of the brain voxels of many volumes pooled, a row a channel: (c, levels).

    Args:
        volumes: (c, x, y, z) each.
        masks: (1, x, y, z) each, boolean.
        levels: from 0 to 1.
    """
    pooled = torch.cat([v[:, m[0]] for v, m in zip(volumes, masks, strict=True)], 1).numpy()
    return np.quantile(pooled, levels, axis=1).T


def apply_curve(volume: torch.Tensor, mask: torch.Tensor, x: np.ndarray, y: np.ndarray) -> torch.Tensor:
    """Map the brain voxels of every channel by a piecewise linear curve.

    Between pooled quantiles of two sites (`quantiles`) this is histogram matching with one curve for all subjects.

    Args:
        volume: (c, x, y, z).
        mask: (1, x, y, z), boolean.
        x, y: points of the curve, one row a channel.
    """
    out = volume.clone()
    for c in range(len(volume)):
        out[c][mask[0]] = torch.from_numpy(np.interp(volume[c][mask[0]].numpy(), *increasing(x[c], y[c]))).float()
    return out


def increasing(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a curve whose x strictly increases.

    np.interp needs it, and quantiles repeat.
    """
    keep = np.concatenate([[True], np.diff(x) > 0])
    return x[keep], y[keep]


def match_volume(volume: torch.Tensor, mask: torch.Tensor, wanted: np.ndarray) -> torch.Tensor:
    """Move a volume's own percentiles to wanted ones (Nyul, Udupa, Zhang 2000).

    Args:
        volume: (c, x, y, z).
        mask: (1, x, y, z), boolean.
        wanted: intensities at `NYUL_LEVELS`, one row a channel.
    """
    return apply_curve(volume, mask, quantiles([volume], [mask], NYUL_LEVELS), wanted)


def fourier_swap(volume: torch.Tensor, other: torch.Tensor, mask: torch.Tensor, beta: float = 0.1) -> torch.Tensor:
    """Take low-frequency amplitudes of another volume, keep the phases (Yang & Soatto 2020).

    Args:
        volume: (c, x, y, z).
        other: the volume whose amplitudes are taken.
        mask: (1, x, y, z), boolean; outside it the result is 0.
        beta: half the side of the swapped cube as a share of the spectrum's side.

    Returns:
        (c, x, y, z), clipped to [0, 1].
    """
    axes = (-3, -2, -1)
    spectrum, amplitudes = (
        torch.fft.fftshift(torch.fft.fftn(volume, dim=axes), axes),
        torch.fft.fftn(other, dim=axes).abs(),
    )
    amplitudes = torch.fft.fftshift(amplitudes, axes)
    low = tuple(slice(n // 2 - int(beta * n), n // 2 + int(beta * n) + 1) for n in volume.shape[-3:])
    new = spectrum.clone()
    new[(..., *low)] = torch.polar(amplitudes, spectrum.angle())[(..., *low)]
    return torch.fft.ifftn(torch.fft.ifftshift(new, axes), dim=axes).real.clip(0, 1) * mask


def gamma_and_bias(volume: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Give each input a random gamma exp(U(-.4, .4)) and a coil-like bias field (MONAI).

    Args:
        volume: (c, x, y, z) in [0, 1].
        mask: (1, x, y, z), boolean.
        rng: of the draws.
    """
    out = []
    for channel in volume:
        field = RandBiasField(prob=1.0, degree=3, coeff_range=(0.0, 0.2))
        field.set_random_state(int(rng.integers(2**31)))
        shaped = AdjustContrast(gamma=float(np.exp(rng.uniform(-0.4, 0.4))))(channel[None].clip(0, 1))
        out.append(torch.as_tensor(field(shaped))[0])
    return torch.where(mask, torch.stack(out).clip(0, 1), volume).float()


def noise_level(volume: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """Estimate the noise of each channel from the differences of neighbours along x.

    Differences hold edges, too, which the median mostly ignores. So compare two sites by it; it is no calibration.

    Returns:
        Standard deviations (c,), from the median absolute difference.
    """
    both = mask[0, 1:] & mask[0, :-1]
    steps = (volume[:, 1:] - volume[:, :-1])[:, both].abs()
    return steps.median(1).values.numpy() / (0.6745 * np.sqrt(2))


def thicker_slices(
    volume: torch.Tensor, mask: torch.Tensor, own_mm: float, wanted_mm: float, spacing: float
) -> torch.Tensor:
    """Blur along z from one slice thickness to a larger one, inside the mask.

    Args:
        volume: (c, x, y, z).
        mask: (1, x, y, z), boolean.
        own_mm, wanted_mm: full widths at half maximum in mm.
        spacing: of the slices in mm.
    """
    sigma = np.sqrt(max(wanted_mm**2 - own_mm**2, 0)) / 2.355 / spacing
    if not sigma:
        return volume.clone()
    inside = mask[0].numpy().astype(np.float32)
    weight = ndimage.gaussian_filter1d(inside, sigma, axis=2)
    blurred = np.stack([ndimage.gaussian_filter1d(c * inside, sigma, axis=2) for c in volume.numpy()])
    return torch.where(mask, torch.from_numpy(blurred / np.maximum(weight, 1e-6)), volume)
