"""Images that are wrong on purpose, and what the library says about them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medsynth_lib.data.files.nifti import stored_voxels
from medsynth_lib.data.files.paths import split_volume
from medsynth_lib.files import DataError


def stored_image(path: Path | str) -> nib.Nifti1Image:
    """Read one scan as its file stores it; "scan.nii.gz#2" gives the third volume alone."""
    data, affine = stored_voxels(path)
    if data.ndim > 3:
        data = data.reshape(*data.shape[:3], -1)[..., split_volume(path)[1] or 0]
    return nib.Nifti1Image(data, affine)


def with_voxel(image: nib.Nifti1Image, value: float) -> nib.Nifti1Image:
    """Copy an image as float32 with one voxel set to a value, such as nan."""
    changed = np.asarray(image.dataobj).astype(np.float32)
    changed[1, 2, 3] = value
    return nib.Nifti1Image(changed, image.affine)


def complaint(hide: str | Path, function: Callable, *arguments: Any, **options: Any) -> str:
    """Call a function that must refuse its input, and return what it says.

    Args:
        hide: a folder that the text shows as an ellipsis.
        function: what to call.
        arguments: of the call.
        options: keyword arguments of the call.

    Raises:
        AssertionError: the function did not complain.
    """
    try:
        function(*arguments, **options)
    except DataError as error:
        return str(error).replace(str(hide), "…")
    raise AssertionError(f"{function.__name__} accepted what it should refuse")
