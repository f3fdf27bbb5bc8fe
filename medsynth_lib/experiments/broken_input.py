"""Images that are wrong on purpose, and what the library says about them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medsynth_lib.files import DataError


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
