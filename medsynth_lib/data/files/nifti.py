"""NIfTI files in and out: one clear error for everything that can be wrong with a file.

Arrays are (x, y, z) in the file's own voxel order, as nibabel gives them. The slice-VAE paper writes volumes
as (z, y, x): its (155, 240, 240) is (240, 240, 155) here.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import SEEK_END, BufferedReader
from math import prod
from pathlib import Path
from typing import TypeAlias

import nibabel as nib
import numpy as np
import psutil
import torch
from monai.data import MetaTensor
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from medsynth_lib.data.files.header import require_sound
from medsynth_lib.data.files.manifest import Scan
from medsynth_lib.data.files.paths import NIFTI, split_volume
from medsynth_lib.files import DataError, atomic

LABELS = (0, 1, 2, 4)  # BraTS: background, necrotic core, oedema, enhancing tumour
GZIP = b"\x1f\x8b"  # the first bytes of what gzip packed
Stream: TypeAlias = gzip.GzipFile | BufferedReader
TOLERANCE_MM = 1e-3  # affines closer than this describe the same grid


def read_volume(path: Path | str, labels: bool | Sequence[int] = False) -> MetaTensor:
    """Read one 3D NIfTI file to its end, checked, without changing its orientation.

    A compressed file is checked against the checksum and the length that it ends with.

    Args:
        path: the file; "file.nii.gz#2" is the third volume of a 4D file.
        labels: whether values are labels, and which are allowed (True: those of BraTS, 0, 1, 2, 4). Then a volume may be
            empty.

    Returns:
        MetaTensor (1, x, y, z), float32 in the file's units (scl_slope and scl_inter applied). Its `affine` (4, 4) maps
        voxels to mm in RAS.

    Raises:
        DataError: for a missing, damaged, non-NIfTI, 4D, all-zero or non-finite file, a header that is impossible or
            contradicts itself, and an unknown label.
    """
    with _opened(path) as (stream, most):
        image = _parsed(stream, most, path)
        _require_memory(image, image.shape[:3], path)
        data = _voxels(image, path, np.float64 if labels else np.float32)
        _require_end(stream, image, path)
    bad = data.size - np.count_nonzero(np.isfinite(data))
    if bad:
        raise DataError(
            f"{path}: {bad} of {data.size} voxels are NaN or infinite; "
            "repeat the conversion that made this file, or set them to 0."
        )
    if labels:
        _require_labels(data, LABELS if labels is True else labels, path)
    elif not data.any():
        raise DataError(f"{path}: all {data.size} voxels are zero; download or convert the file again.")
    return MetaTensor(
        torch.from_numpy(data.astype(np.float32, copy=False))[None],
        affine=torch.from_numpy(image.affine),
        meta={"filename_or_obj": str(path)},
    )


def read_header(path: Path | str) -> nib.Nifti1Image:
    """Read the header of a NIfTI file, checked; the voxels are not read and cannot be.

    Args:
        path: the file, of 3D, or of 4D for "file.nii.gz#2".

    Raises:
        DataError: for anything else, and for a header that is impossible or contradicts itself.
    """
    with _opened(path) as (stream, most):
        return _parsed(stream, most, path)


def stored_voxels(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Read all voxels of a file to its end, whatever they are: zeros, NaN and labels pass.

    Args:
        path: the file; of a 4D file with "#2" all volumes come, not the one.

    Returns:
        Scaled values (x, y, z) or (x, y, z, n), float32, and the affine (4, 4) in mm.

    Raises:
        DataError: for a missing or damaged file, and a header that is impossible or contradicts itself.
    """
    with _opened(path) as (stream, most):
        image = _parsed(stream, most, path)
        _require_memory(image, image.shape, path)
        data = _values(image, path, np.float32)
        _require_end(stream, image, path)
    return data, image.affine


@contextmanager
def _opened(path: Path | str) -> Iterator[tuple[Stream, int]]:
    """The bytes of a file, unpacked where the first two say gzip, and how many they can be.

    The ending may say something else.
    """
    file, _ = split_volume(path)
    if not file.is_file():
        raise DataError(f"{path}: {_no_file(file)}; check the path in the manifest, or download the data set again.")
    try:
        with open(file, "rb") as raw:
            packed = raw.read(2) == GZIP
            size = raw.seek(0, SEEK_END)
            raw.seek(0)
            # gzip packs 1,032 bytes into one
            yield (gzip.GzipFile(fileobj=raw), 1100 * size) if packed else (raw, size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the file is truncated or damaged ({error}); copy or download it again.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); allow reading it, or copy it again.") from error


def _no_file(path: Path) -> str:
    """What is wrong with a path that is no file, for an error."""
    if path.is_dir():
        return "is a folder, not a file"
    if path.is_symlink():
        return f"no such file, but a link to {path.readlink()}, which is not there"
    name, mark, number = path.name.rpartition("#")
    known = mark and path.with_name(name).is_file()
    return f"no such file, and {name} has no volume {number}: volumes count from 0" if known else "no such file"


def _parsed(stream: Stream, most: int, path: Path | str) -> nib.Nifti1Image:
    """The image of an open file of at most `most` bytes, whose header is sound.

    Its voxels are still in the stream.
    """
    start = stream.read(nib.Nifti2Header.sizeof_hdr)
    kind = _kind(start, path)
    try:
        require_sound(kind.header_class(start[: kind.header_class.sizeof_hdr], check=False), path)
        stream.seek(0)
        image = kind.from_stream(stream)
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable NIfTI file ({error}); export it as .nii or .nii.gz.") from error
    _require_one_volume(image, path)
    if _end(image) > most:  # before memory is asked for
        raise DataError(
            f"{path}: the header promises {image.shape} voxels of {image.get_data_dtype()}, more than the file can hold; "
            "copy or download it again."
        )
    return image


def _kind(start: bytes, path: Path | str) -> type[nib.Nifti1Image]:
    """The class of a file that begins with these bytes: NIfTI-1 or NIfTI-2 in one file."""
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        header = kind.header_class
        at = 4 if kind is nib.Nifti2Image else 344
        if start[at:].startswith(header.single_magic + b"\0") and len(start) >= header.sizeof_hdr:
            return kind
    if not start:
        raise DataError(f"{path}: the file is empty, so it is not NIfTI; copy or download it again.")
    if start[:2] == GZIP:
        raise DataError(f"{path}: is packed by gzip twice, so it is not NIfTI yet; unpack it once.")
    if start.lstrip()[:1] == b"<":
        raise DataError(f"{path}: is a web page or XML, not NIfTI (it begins with {start[:16]!r}); download it again.")
    raise DataError(f"{path}: is not NIfTI in one file{_other_format(path, start)}; convert it to .nii.gz.")


def _other_format(path: Path | str, start: bytes) -> str:
    """What a file is that is not NIfTI, for an error: its format, or how it begins."""
    file, _ = split_volume(path)
    try:
        kind = type(nib.load(file))
    except Exception:  # each of nibabel's formats fails in ways of its own, or lacks a package
        return f" (it begins with {start[:16]!r})"
    return ", packed by gzip or not at all" if kind in (nib.Nifti1Image, nib.Nifti2Image) else f", but {kind.__name__}"


def _require_one_volume(image: nib.Nifti1Image, path: Path | str) -> None:
    """Require a 3D image, or a 4D one that has the volume `path` names."""
    _, number = split_volume(path)
    if number is not None:
        if len(image.shape) != 4 or number >= image.shape[3]:
            raise DataError(
                f"{path}: has shape {image.shape}, so there is no volume {number}; count from 0, in a 4D file."
            )
    elif len(image.shape) < 3 or any(n != 1 for n in image.shape[3:]):
        raise DataError(
            f"{path}: has shape {image.shape}, but one 3D volume is needed; "
            "split it into one file a volume, for instance with nibabel.four_to_three."
        )


def _end(image: nib.Nifti1Image) -> int:
    """Bytes of an unpacked file, as its header promises."""
    voxels = prod(int(n) for n in image.shape)
    return int(image.dataobj.offset) + voxels * image.get_data_dtype().itemsize


def _require_memory(image: nib.Nifti1Image, shape: Sequence[int], path: Path | str) -> None:
    """Refuse voxels of a shape that need more than the free memory, before it is asked for."""
    needed, free = 12 * prod(shape), psutil.virtual_memory().available  # bytes: as read, and in 32 bits
    if needed > free:
        raise DataError(
            f"{path}: {image.shape} voxels take {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; resample it "
            "to voxels of about 1 mm, or cut it down to the head."
        )


def _require_end(stream: Stream, image: nib.Nifti1Image, path: Path | str) -> None:
    """Read on to the end, where gzip checks what it unpacked; refuse bytes behind the voxels."""
    end = _end(image)
    stream.seek(end)
    if stream.read(1):
        while stream.read(2**20):  # a damaged file is called damaged
            pass
        raise DataError(
            f"{path}: the file goes on after the {image.shape} voxels of {image.get_data_dtype()} that the header promises, "
            f"{end} bytes in all; copy or convert it again."
        )


def _voxels(image: nib.Nifti1Image, path: Path | str, kind: type[np.floating]) -> np.ndarray:
    """The scaled voxels (x, y, z) of type `kind`; of a 4D file, the volume that `path` names."""
    return _values(image, path, kind, split_volume(path)[1]).reshape(image.shape[:3])


def _values(image: nib.Nifti1Image, path: Path | str, kind: type[np.floating], number: int | None = None) -> np.ndarray:
    """The scaled voxels of all volumes, or of one of a 4D file."""
    try:
        data = np.asanyarray(image.dataobj, kind) if number is None else image.dataobj[..., number]
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise
    except MemoryError as error:
        raise DataError(
            f"{path}: {image.shape} voxels do not fit into memory; resample the image, or cut it."
        ) from error
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: the header promises {image.shape} voxels of {image.get_data_dtype()}, but the file ends before "
            f"({str(error).splitlines()[0]}); copy or download it again."
        ) from error
    return np.array(data, dtype=kind)  # our own memory: never a map of the file


def _require_labels(data: np.ndarray, known: Sequence[int], path: Path | str) -> None:
    """Refuse values that are no labels, at the file's own precision: 3.9999 is not 4."""
    unknown = sorted(set(np.unique(data).tolist()) - set(known))
    broken = [value for value in unknown if value != round(value)]
    if broken:
        raise DataError(
            f"{path}: {broken[:5]} are no whole numbers, so they are no labels; "
            "resample with the nearest neighbour, and save without scaling."
        )
    if unknown:
        whose = "BraTS" if tuple(known) == LABELS else "this data set"
        remedy = "map yours to these first"
        if unknown == [3] and 4 in known and 4 not in data:
            remedy = "change 3 to 4: data sets since BraTS 2023, and MSD, call the enhancing tumour 3"
        raise DataError(f"{path}: unknown labels {unknown[:5]}; {whose} uses {known}, so {remedy}.")


def volume_name(volume: torch.Tensor) -> str:
    """Return what errors call a volume: its file, where it came from one."""
    return volume.meta.get("filename_or_obj", "volume") if isinstance(volume, MetaTensor) else "volume"


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
        DataError: for another ending, non-finite values, values an integer type cannot hold, an affine that is singular,
            and a disk that cannot be written.
    """
    if not str(path).endswith((*NIFTI, *(ending.upper() for ending in NIFTI))):  # nibabel writes no .Nii
        raise DataError(f"{path}: a volume is written as .nii or .nii.gz; give it such a name.")
    array, affine = np.asarray(array), np.asarray(affine, dtype=float)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.ndim != 3:
        raise DataError(f"{path}: array has shape {array.shape}; give one volume (x, y, z).")
    if not np.isfinite(array).all():
        raise DataError(f"{path}: array holds NaN or infinite values; mend them before writing.")
    if np.issubdtype(dtype, np.integer):
        array = _rounded(array, np.dtype(dtype), path)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{path}: the affine is singular or not finite (rows {affine[:3].tolist()}); give one in mm.")
    image = nib.Nifti1Image(array.astype(dtype), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    if not np.allclose(image.get_qform(), affine, atol=TOLERANCE_MM):
        image.set_qform(affine, code=0)  # a qform holds no shear, and must not say anything else
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
