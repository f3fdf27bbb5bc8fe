"""What a NIfTI header must say before its voxels are believed: one type, one scaling, one unit and one geometry."""

from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from medsynth_lib.files import DataError, say_once

UNITS = {0: ("of no unit", None), 1: ("metre", 1000.0), 2: ("mm", None), 3: ("micron", 0.001)}  # name, in mm
VOXEL_MM = (0.01, 50.0)  # what a scan of a person may have
EXTENT_MM = 3000.0
SIZE_GAP, SIZE_NOTE = 0.10, 0.01  # of a voxel: beyond the first two sizes cannot be meant to agree
COS_APART = 0.9  # axes of sform and qform more than 26 degrees apart are two orientations
CODES = range(6)
REMEDY = "find out which is right, and write both alike (nibabel: set_sform and set_qform)."


def require_sound(header: nib.Nifti1Header, path: Path | str) -> None:
    """Raise DataError unless a header says one thing only.

    Where two statements differ a little, a printed line says which one is used.

    Args:
        header: as stored in the file, before nibabel mends it.
        path: what errors call it.

    Raises:
        DataError: for sizes, types, a scaling, units or a geometry that are impossible, missing or contradictory.
    """
    _require_shape(header, path)
    _require_type(header, path)
    _require_scaling(header, path)
    _require_units(header, path)
    _require_geometry(header, path)


def _require_shape(header: nib.Nifti1Header, path: Path | str) -> None:
    axes = int(header["dim"][0])
    shape = header["dim"][1 : axes + 1].tolist() if 1 <= axes <= 7 else header["dim"].tolist()
    if not 1 <= axes <= 7 or min(shape) < 1:
        raise DataError(
            f"{path}: the header is damaged: {axes} axes of {shape} voxels are not possible; copy or download it again."
        )
    if int(header["sizeof_hdr"]) != header.sizeof_hdr:
        raise DataError(
            f"{path}: the header is damaged: its own size is {header.sizeof_hdr}, not {int(header['sizeof_hdr'])} "
            "(sizeof_hdr); copy or download it again."
        )
    start = float(header["vox_offset"])
    if start != 0 and not (start >= header.single_vox_offset and start == round(start)):
        raise DataError(
            f"{path}: the header is damaged: voxels cannot begin at byte {start:g} (vox_offset), inside the header; "
            "copy or download it again."
        )


def _require_type(header: nib.Nifti1Header, path: Path | str) -> None:
    try:
        kind = header.get_data_dtype()
    except (HeaderDataError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: the header's data type {int(header['datatype'])} is none of NIfTI; export the image again."
        ) from error
    if kind.kind not in "iuf":
        raise DataError(f"{path}: voxels are of type {kind}, not real numbers; export one number a voxel.")
    if int(header["bitpix"]) != 8 * kind.itemsize:
        raise DataError(
            f"{path}: the header is damaged: voxels of {kind} do not have {int(header['bitpix'])} bits (bitpix); "
            "copy or export it again."
        )


def _require_scaling(header: nib.Nifti1Header, path: Path | str) -> None:
    slope, offset = float(header["scl_slope"]), float(header["scl_inter"])
    if not (np.isfinite(slope) and np.isfinite(offset)) or (slope == 0 and offset != 0):
        raise DataError(
            f"{path}: the header's scaling makes no sense (scl_slope {slope:g}, scl_inter {offset:g}); "
            "write both as they were meant, or 1 and 0 for values used as stored."
        )


def _require_units(header: nib.Nifti1Header, path: Path | str) -> None:
    """Take mm, and no unit, for mm; refuse others, and sizes that cannot be mm."""
    code, size = int(header["xyzt_units"]) & 7, header["pixdim"][1:4].astype(float)
    name, factor = UNITS.get(code, (f"code {code}, which NIfTI does not know", None))
    if not (np.isfinite(size) & (size > 0)).all():
        raise DataError(
            f"{path}: voxel sizes {size.tolist()} (pixdim) are not positive; write them in mm, with the unit mm."
        )
    if factor:
        raise DataError(
            f"{path}: the header's unit is {name}: voxels of {_text(size)} {name} would be {_text(size * factor)} mm; "
            f"if so, multiply sform, qform and pixdim by {factor:g}; set the unit to mm."
        )
    if code not in UNITS:
        raise DataError(f"{path}: the header's unit has {name}; write sizes in mm, and set the unit to mm.")


def _require_geometry(header: nib.Nifti1Header, path: Path | str) -> None:
    """Require codes, one affine that is possible, and sizes that agree with it."""
    codes = {form: int(header[f"{form}_code"]) for form in ("sform", "qform")}
    wrong = [f"{form}_code {code}" for form, code in codes.items() if code not in CODES]
    if wrong:
        raise DataError(f"{path}: the header is damaged: {', '.join(wrong)} is none of NIfTI's 0 to 5; copy it again.")
    if not any(codes.values()):
        raise DataError(
            f"{path}: the header has no orientation (sform_code and qform_code are 0), so left and right are not known; "
            "find them out, and write the affine with a code (nibabel: set_sform(affine, code=1))."
        )
    affine = affine_of(header, path)
    _require_sizes(header, affine, path)
    if all(codes.values()):
        _require_agreement(header, path)


def affine_of(header: nib.Nifti1Header, path: Path | str) -> np.ndarray:
    """Return the affine (4, 4) in mm of a header: its sform where it has one, else its qform.

    Args:
        header: with a code for one of them.
        path: what errors call it.

    Raises:
        DataError: for an affine that is singular, not finite or no rotation.
    """
    form = "sform" if header["sform_code"] > 0 else "qform"
    affine = header.get_sform() if form == "sform" else _qform(header, path)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(
            f"{path}: the affine is singular or not finite (rows {affine[:3].tolist()}); "
            f"repair the header's {form} or voxel sizes."
        )
    return affine


def _qform(header: nib.Nifti1Header, path: Path | str) -> np.ndarray:
    header = header.copy()
    if header["pixdim"][0] == 0:  # NIfTI: an unset handedness stands for 1
        header["pixdim"][0] = 1
    try:
        return header.get_qform()
    except (HeaderDataError, ValueError) as error:
        raise DataError(
            f"{path}: the header's qform is no rotation ({error}); write it anew (nibabel: set_qform)."
        ) from error


def _require_sizes(header: nib.Nifti1Header, affine: np.ndarray, path: Path | str) -> None:
    """Require voxel sizes of a scan, and pixdim to agree with the affine."""
    stated, size = header["pixdim"][1:4].astype(float), np.linalg.norm(affine[:3, :3], axis=0)
    extent = size * _shape(header)
    if size.min() < VOXEL_MM[0] or size.max() > VOXEL_MM[1] or extent.max() > EXTENT_MM:
        raise DataError(
            f"{path}: voxels of {_text(size)} mm and {_text(extent)} mm in all are none of a person; "
            "write the header in mm, and set its unit to mm."
        )
    gap = np.abs(size / stated - 1).max()
    if gap > SIZE_GAP:
        raise DataError(
            f"{path}: voxel sizes are {_text(stated)} mm by pixdim and {_text(size)} mm by the affine; {REMEDY}"
        )
    if gap > SIZE_NOTE:
        say_once(
            "voxel sizes",
            f"{path}: voxel sizes are {_text(stated)} mm by pixdim and {_text(size)} mm by the affine. The affine is used, "
            "here and in other files like it.",
        )


def _require_agreement(header: nib.Nifti1Header, path: Path | str) -> None:
    """Refuse an sform and a qform of two orientations; say where they differ by half a voxel."""
    affines = header.get_sform(), _qform(header, path)
    if not np.isfinite(affines[1]).all():
        raise DataError(f"{path}: the header's qform is not finite ({affines[1][:3].tolist()}); {REMEDY}")
    units = [affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) for affine in affines]
    if (units[0] * units[1]).sum(0).min() < COS_APART:
        axes = ["".join(map(str, nib.aff2axcodes(affine))) for affine in affines]
        raise DataError(
            f"{path}: sform ({axes[0]}, {affines[0][:3].tolist()}) and qform ({axes[1]}, {affines[1][:3].tolist()}) "
            f"are two orientations; {REMEDY}"
        )
    corners = np.array([[*corner, 1] for corner in product(*[(0, n - 1) for n in _shape(header)])])
    gap = np.linalg.norm((corners @ (affines[0] - affines[1]).T)[:, :3], axis=1).max()
    if gap > 0.5 * header["pixdim"][1:4].min():
        say_once(
            "sform",
            f"{path}: sform and qform differ by up to {gap:.1f} mm. The sform is used, here and in other files like it.",
        )


def _shape(header: nib.Nifti1Header) -> np.ndarray:
    """Voxels along x, y and z; 1 for an axis that the image lacks."""
    shape = header["dim"][1 : int(header["dim"][0]) + 1].tolist()
    return np.array([*shape, 1, 1][:3])


def _text(numbers: np.ndarray) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)
