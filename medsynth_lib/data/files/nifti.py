"""NIfTI files in and out: one clear error for everything that can be wrong with a file.

Arrays are (x, y, z) in the file's own voxel order, as nibabel gives them. The slice-VAE paper writes volumes
as (z, y, x): its (155, 240, 240) is (240, 240, 155) here.
"""

import gzip
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage

from medsynth_lib.data.files.manifest import Scan
from medsynth_lib.files import DataError, atomic

LABELS = (0, 1, 2, 4)  # BraTS: background, necrotic core, oedema, enhancing tumour
TOLERANCE_MM = 1e-3  # affines closer than this describe the same grid


def read_volume(path: Path | str, labels: bool | Sequence[int] = False) -> MetaTensor:
    """Read one 3D NIfTI file, checked, without changing its orientation.

    Args:
        path: the file; "file.nii.gz#2" is the third volume of a 4D file.
        labels: whether values are labels, and which are allowed (True: those of BraTS, 0, 1, 2, 4). Then a volume may be
            empty.

    Returns:
        MetaTensor (1, x, y, z), float32 in the file's units (scl_slope and scl_inter applied). Its `affine` (4, 4) maps
        voxels to mm in RAS.

    Raises:
        DataError: for a missing, truncated, non-NIfTI, 4D, all-zero or non-finite file, an unknown label, or a singular
            affine.
    """
    image = read_header(path)
    affine = image.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(
            f"{path}: the affine is singular or not finite (rows {affine[:3].tolist()}); "
            "repair the header's sform or voxel sizes."
        )
    data = _voxels(image, path)
    bad = data.size - np.count_nonzero(np.isfinite(data))
    if bad:
        raise DataError(
            f"{path}: {bad} of {data.size} voxels are NaN or infinite; "
            "repeat the conversion that made this file, or set them to 0."
        )
    if labels:
        known = LABELS if labels is True else labels
        unknown = sorted(set(np.unique(data).tolist()) - set(known))
        if unknown:
            whose = "BraTS" if labels is True else "this data set"
            raise DataError(f"{path}: unknown labels {unknown[:5]}; {whose} uses {known}, so map yours to these first.")
    elif not data.any():
        raise DataError(f"{path}: all {data.size} voxels are zero; download or convert the file again.")
    return MetaTensor(
        torch.from_numpy(data)[None], affine=torch.from_numpy(affine), meta={"filename_or_obj": str(path)}
    )


def read_header(path: Path | str) -> SpatialImage:
    """Open a NIfTI file with its voxels still on disk: 3D, or 4D for "file.nii.gz#2".

    Raises:
        DataError: for anything else.
    """
    file, _, number = str(path).partition("#")
    if not Path(file).is_file():
        raise DataError(f"{path}: no such file; check the path in the manifest, or download the data set again.")
    try:
        image = nib.load(file)
    except (EOFError, zlib.error) as error:
        raise _truncated(path, error) from error
    except (ImageFileError, HeaderDataError, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: not a readable NIfTI file ({error}); export it as .nii or .nii.gz.") from error
    if not isinstance(image, nib.Nifti1Pair):
        raise DataError(f"{path}: is {type(image).__name__}, not NIfTI; convert it to .nii.gz.")
    promised = np.prod([float(n) for n in image.shape]) * image.get_data_dtype().itemsize
    if promised > Path(file).stat().st_size * (1100 if file.endswith(".gz") else 1):  # gzip packs 1,032 bytes into one
        raise DataError(
            f"{path}: the header promises {image.shape} voxels of {image.get_data_dtype()}, more than the file can hold; "
            "copy or download it again."
        )
    if number:
        if len(image.shape) != 4 or not number.isdecimal() or int(number) >= image.shape[3]:
            raise DataError(
                f"{path}: has shape {image.shape}, so there is no volume {number}; count from 0, in a 4D file."
            )
    elif len(image.shape) < 3 or any(n != 1 for n in image.shape[3:]):
        raise DataError(
            f"{path}: has shape {image.shape}, but one 3D volume is needed; "
            "split it into one file a volume, for instance with nibabel.four_to_three."
        )
    return image


def _voxels(image: SpatialImage, path: Path | str) -> np.ndarray:
    """The scaled voxels, (x, y, z) float32; of a 4D file those of the volume that `path` names."""
    kind = image.get_data_dtype()
    if kind.kind not in "iuf":
        raise DataError(f"{path}: voxels are of type {kind}, not real numbers; export one number a voxel.")
    try:
        number = str(path).partition("#")[2]
        data = image.dataobj[..., int(number)] if number else image.get_fdata(dtype=np.float32, caching="unchanged")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _truncated(path, error) from error
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise DataError(
            f"{path}: the header promises {image.shape} voxels of {kind}, but the file ends before "
            f"({str(error).splitlines()[0]}); copy or download it again."
        ) from error
    return np.array(data.reshape(image.shape[:3]), dtype=np.float32)  # our own memory: never a map of the file


def volume_name(volume: torch.Tensor) -> str:
    """Return what errors call a volume: its file, where it came from one."""
    return volume.meta.get("filename_or_obj", "volume") if isinstance(volume, MetaTensor) else "volume"


def _truncated(path: Path | str, error: Exception) -> DataError:
    return DataError(f"{path}: the file is truncated or damaged ({error}); copy or download it again.")


def read_case(
    scan: Scan, modalities: Iterable[str] = ("flair", "t2", "t1"), labels: bool = True
) -> dict[str, MetaTensor]:
    """Read one scan: its modalities, checked to lie on one grid.

    Args:
        scan: a row of a manifest.
        modalities: what to read.
        labels: also read "seg" where the scan has one.

    Returns:
        Modality -> MetaTensor (1, x, y, z), float32.

    Raises:
        DataError: for a missing modality, and for shapes or affines (tolerance 1e-3 mm) that differ.
    """
    keys = [*modalities, "seg"] if labels and scan.has("seg") else list(modalities)
    paths = {key: scan.path(key) for key in keys}  # a missing one is named before the others are read
    case = {key: read_volume(path, labels=key == "seg") for key, path in paths.items()}
    first = case[keys[0]]
    for other in case.values():
        require_same_grid(first, other)
    return case


def require_same_grid(first: MetaTensor, other: MetaTensor) -> None:
    """Raise DataError where two MetaTensors (1, x, y, z) differ in shape or affine."""
    gap = grid_gap([tuple(v.shape[1:]) for v in (first, other)], [v.affine.numpy() for v in (first, other)])
    if gap:
        raise DataError(f"{first.meta['filename_or_obj']} and {other.meta['filename_or_obj']}: {gap}")


def grid_gap(shapes: Sequence[tuple[int, ...]], affines: Sequence[np.ndarray]) -> str | None:
    """Say how two grids differ; None where they agree to `TOLERANCE_MM`.

    Args:
        shapes: two shapes (x, y, z).
        affines: two affines (4, 4) in mm.
    """
    remedy = "resample one onto the other's grid."
    if shapes[0] != shapes[1]:
        return f"shapes {shapes[0]} and {shapes[1]} differ; {remedy}"
    gap = np.abs(affines[0] - affines[1])
    gap[:3, :3] *= max(shapes[0])  # a tilted axis counts by how far it moves the last voxel
    if gap.max() <= TOLERANCE_MM:
        return None
    rows = [np.round(affine[:3], 4).tolist() for affine in affines]
    return f"affines {rows[0]} and {rows[1]} differ by up to {float(gap.max()):.4g} mm; {remedy}"


def write_volume(path: Path | str, array: np.ndarray, affine: np.ndarray, dtype: str = "int16") -> None:
    """Write one volume as NIfTI, atomically: the file is either whole or as it was before.

    Args:
        path: a name ending in .nii or .nii.gz.
        array: values (x, y, z) or (1, x, y, z).
        affine: voxels to mm (4, 4), RAS.
        dtype: of the file; an integer type rounds to the nearest.

    Raises:
        DataError: for non-finite values, values an integer type cannot hold, and a disk that cannot be written.
    """
    array, affine = np.asarray(array), np.asarray(affine, dtype=float)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.ndim != 3:
        raise DataError(f"{path}: array has shape {array.shape}; give one volume (x, y, z).")
    if not np.isfinite(array).all():
        raise DataError(f"{path}: array holds NaN or infinite values; mend them before writing.")
    if np.issubdtype(dtype, np.integer):
        array = _rounded(array, np.dtype(dtype), path)
    image = nib.Nifti1Image(array.astype(dtype), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with atomic(path) as temporary:
        nib.save(image, temporary)


def _rounded(array: np.ndarray, dtype: np.dtype, path: Path | str) -> np.ndarray:
    rounded, limits = np.rint(array), np.iinfo(dtype)
    low, high = rounded.min(), rounded.max()
    if low < limits.min or high > limits.max:
        raise DataError(
            f"{path}: values {low:g} to {high:g} do not fit {dtype} ({limits.min} to {limits.max}); "
            "rescale them or write dtype='float32'."
        )
    if array.any() and not rounded.any():  # [0, 1] images: a whole brain would silently become zeros
        raise DataError(
            f"{path}: all values (up to {np.abs(array).max():g}) round to 0 as {dtype}; "
            "rescale them or write dtype='float32'."
        )
    return rounded
