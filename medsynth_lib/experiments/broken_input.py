"""Images that are wrong on purpose, and what the library says about them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from medsynth_lib.data.files.nifti import read_header
from medsynth_lib.files import DataError


def stored_image(path: Path | str) -> SpatialImage:
    """Open one scan as its file stores it; "scan.nii.gz#2" gives the third volume alone."""
    image = read_header(path)
    if len(image.shape) == 3:
        return image
    return image.slicer[..., 0 if image.shape[3] == 1 else int(str(path).rpartition("#")[2])]


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
