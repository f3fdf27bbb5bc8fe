"""How good is a synthetic image: one definition of every score, used by all notebooks.

Volumes are (x, y, z) arrays or tensors in [0, 1] (data range 1) unless said otherwise; masks are boolean. The main columns
are measured inside the brain: black background is right for free and flatters every method.
"""

import numpy as np
from skimage.metrics import normalized_mutual_information as sk_nmi
from skimage.metrics import structural_similarity


def as_array(volume):
    """(x, y, z) numpy array from a tensor or array that may have leading axes of length 1."""
    array = np.asarray(volume)
    return array.reshape(array.shape[-3:])


def psnr(prediction, target, mask=None):
    """Peak signal-to-noise ratio in dB with data range 1: -10 log10 of the mean squared error (inside ``mask``)."""
    error = as_array(prediction).astype(np.float64) - as_array(target)
    error = error if mask is None else error[as_array(mask)]
    mse = np.mean(error**2)
    return float(-10 * np.log10(mse)) if mse else float("inf")


def nmse(prediction, target, mask=None):
    """Normalised mean squared error ||prediction - target||^2 / ||target||^2 (inside ``mask``): 1 for a black prediction.

    Black must be 0: on a scale where it is -1, the background's energy stands in the denominator. Raises ValueError for a
    target that is black.
    """
    p, t = as_array(prediction).astype(np.float64), as_array(target).astype(np.float64)
    if mask is not None:
        p, t = p[as_array(mask)], t[as_array(mask)]
    energy = np.sum(t**2)
    if not energy:
        raise ValueError("the target is black: its error cannot be divided by its energy")
    return float(np.sum((p - t) ** 2) / energy)


def ssim(prediction, target, mask=None):
    """Structural similarity (Wang et al. 2004): `ssim_map` averaged inside ``mask`` (everywhere without one)."""
    full = ssim_map(prediction, target)
    return float(full.mean() if mask is None else full[as_array(mask)].mean())


def ssim_map(prediction, target):
    """Structural similarity at every voxel (x, y, z), data range 1.

    Gaussian window in 3D of sigma 1.5 voxels cut at 5 voxels, K1 = .01, K2 = .03.
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


def nmi(prediction, target, mask, bins=64):
    """Normalised mutual information (H(a) + H(b)) / H(a, b) inside the mask: 1 is independent, 2 is one-to-one."""
    mask = as_array(mask)
    return float(sk_nmi(as_array(prediction)[mask], as_array(target)[mask], bins=bins))


def scale_free_psnr(prediction, target, mask):
    """PSNR after the affine intensity change a * prediction + b that fits the target best: structure without contrast."""
    mask = as_array(mask)
    p, t = as_array(prediction)[mask].astype(np.float64), as_array(target)[mask].astype(np.float64)
    slope, intercept = np.polyfit(p, t, 1)
    return float(-10 * np.log10(np.mean((slope * p + intercept - t) ** 2)))


def paper_psnr(prediction, target):
    """PSNR as the adaptation paper's code computed it: whole volume, with the prediction's own range as the peak."""
    prediction = as_array(prediction)
    mse = np.mean((prediction.astype(np.float64) - as_array(target)) ** 2)
    return float(10 * np.log10((prediction.max() - prediction.min()) ** 2 / mse))


def scores(prediction, target, mask, seg=None):
    """All image scores of one volume as a dictionary; ``tumour`` columns only where ``seg`` has a tumour."""
    mask = as_array(mask).astype(bool)
    out = dict(
        psnr=psnr(prediction, target, mask),
        ssim=ssim(prediction, target, mask),
        nmi=nmi(prediction, target, mask),
        scale_free_psnr=scale_free_psnr(prediction, target, mask),
        paper_psnr=paper_psnr(prediction, target),
        paper_ssim=ssim(prediction, target),  # whole volume, background included
    )
    tumour = mask & (as_array(seg) > 0) if seg is not None else np.zeros_like(mask)
    if tumour.any():
        out |= dict(tumour_psnr=psnr(prediction, target, tumour), healthy_psnr=psnr(prediction, target, mask & ~tumour))
    return out
