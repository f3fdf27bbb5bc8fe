"""Scores of several subjects' images at once."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from medsynth_lib.evaluation.image import psnr


def psnrs(images: Iterable[ArrayLike], truths: Iterable[ArrayLike], masks: Iterable[ArrayLike]) -> np.ndarray:
    """Score each image inside its mask.

    Args:
        images: each (x, y, z) or (1, x, y, z), data range 1.
        truths: as the images, in the same order.
        masks: boolean, as the images.

    Returns:
        PSNR in dB, one number an image.
    """
    return np.array([psnr(i, t, m) for i, t, m in zip(images, truths, masks, strict=True)])
