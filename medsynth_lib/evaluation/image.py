"""How good is a synthetic image: one definition of every score, used by all notebooks.

Volumes are (x, y, z) arrays or tensors in [0, 1] (data range 1) unless said otherwise; leading axes of length 1 may precede.
Masks are boolean, of the same shape. The main scores are taken inside the brain: black background is right for free and
flatters every method.
"""

import numpy as np
from numpy.typing import ArrayLike
from skimage.metrics import normalized_mutual_information as sk_nmi
from skimage.metrics import structural_similarity


def as_array(volume: ArrayLike) -> np.ndarray:
    """Make an (x, y, z) array of a tensor or array that may have leading axes of length 1."""
    array = np.asarray(volume)
    return array.reshape(array.shape[-3:])


def psnr(prediction: ArrayLike, target: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Take the peak signal-to-noise ratio: -10 log10 of the mean squared error, data range 1.

    Args:
        prediction: (x, y, z) in [0, 1].
        target: (x, y, z) in [0, 1].
        mask: where to score; everywhere without one.

    Returns:
        dB; infinite for equal volumes.
    """
    error = as_array(prediction).astype(np.float64) - as_array(target)
    error = error if mask is None else error[as_array(mask)]
    mse = np.mean(error**2)
    return float(-10 * np.log10(mse)) if mse else float("inf")


def nmse(prediction: ArrayLike, target: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Take the normalised mean squared error ||prediction - target||^2 / ||target||^2.

    Black must be 0: on a scale where it is -1, the background's energy stands in the denominator.

    Args:
        prediction: (x, y, z), in any unit.
        target: (x, y, z), in the same unit.
        mask: where to score; everywhere without one.

    Returns:
        0 for equal volumes, 1 for a black prediction.

    Raises:
        ValueError: the target is black.
    """
    p, t = as_array(prediction).astype(np.float64), as_array(target).astype(np.float64)
    if mask is not None:
        p, t = p[as_array(mask)], t[as_array(mask)]
    energy = np.sum(t**2)
    if not energy:
        raise ValueError("the target is black: its error cannot be divided by its energy")
    return float(np.sum((p - t) ** 2) / energy)


def ssim(prediction: ArrayLike, target: ArrayLike, mask: ArrayLike | None = None) -> float:
    """Average `ssim_map` (Wang et al. 2004) inside a mask, or everywhere without one."""
    full = ssim_map(prediction, target)
    return float(full.mean() if mask is None else full[as_array(mask)].mean())


def ssim_map(prediction: ArrayLike, target: ArrayLike) -> np.ndarray:
    """Take the structural similarity at every voxel: (x, y, z), 1 where volumes are equal.

    The window is a Gaussian in 3D of sigma 1.5 voxels cut at 5 voxels; K1 = .01, K2 = .03, data range 1.
    """
    _, full = structural_similarity(
        as_array(target).astype(np.float64),
        as_array(prediction).astype(np.float64),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    return full


def nmi(prediction: ArrayLike, target: ArrayLike, mask: ArrayLike, bins: int = 64) -> float:
    """Take the normalised mutual information (H(a) + H(b)) / H(a, b) inside a mask.

    Args:
        prediction: (x, y, z).
        target: (x, y, z).
        mask: where to score.
        bins: of each volume's histogram.

    Returns:
        1 for independent volumes, 2 for a one-to-one map between their intensities.
    """
    mask = as_array(mask)
    return float(sk_nmi(as_array(prediction)[mask], as_array(target)[mask], bins=bins))


def scale_free_psnr(prediction: ArrayLike, target: ArrayLike, mask: ArrayLike) -> float:
    """Take the PSNR, in dB, after the affine intensity change that fits the target best.

    It judges structure without contrast.
    """
    mask = as_array(mask)
    p, t = as_array(prediction)[mask].astype(np.float64), as_array(target)[mask].astype(np.float64)
    slope, intercept = np.polyfit(p, t, 1)
    return float(-10 * np.log10(np.mean((slope * p + intercept - t) ** 2)))


def paper_psnr(prediction: ArrayLike, target: ArrayLike) -> float:
    """Take the PSNR, in dB, as the adaptation paper's code does.

    It counts the whole volume, and the prediction's own range is the peak.
    """
    prediction = as_array(prediction)
    mse = np.mean((prediction.astype(np.float64) - as_array(target)) ** 2)
    return float(10 * np.log10((prediction.max() - prediction.min()) ** 2 / mse))


def scores(prediction: ArrayLike, target: ArrayLike, mask: ArrayLike, seg: ArrayLike | None = None) -> dict[str, float]:
    """Take all image scores of one volume.

    Args:
        prediction: (x, y, z) in [0, 1].
        target: (x, y, z) in [0, 1].
        mask: the brain.
        seg: tumour labels, 0 outside; None where there are none.

    Returns:
        Scores by name. paper_psnr and paper_ssim are of the whole volume; tumour_psnr and healthy_psnr are there only where
        ``seg`` has a tumour.
    """
    mask = as_array(mask).astype(bool)
    out = dict(
        psnr=psnr(prediction, target, mask),
        ssim=ssim(prediction, target, mask),
        nmi=nmi(prediction, target, mask),
        scale_free_psnr=scale_free_psnr(prediction, target, mask),
        paper_psnr=paper_psnr(prediction, target),
        paper_ssim=ssim(prediction, target),
    )
    tumour = mask & (as_array(seg) > 0) if seg is not None else np.zeros_like(mask)
    if tumour.any():
        out |= dict(tumour_psnr=psnr(prediction, target, tumour), healthy_psnr=psnr(prediction, target, mask & ~tumour))
    return out
