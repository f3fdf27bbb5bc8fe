"""Identity of scans: an image is known by its voxels, not by its name.

Two files hold one image where their voxels are equal, in whatever orientation, type or packing they are stored. Affines do not
count: a copy often has another header.
A DICOM series is compared with other DICOM series alone, not with a NIfTI copy of it.
"""

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from medsynth_lib.data.files.manifest import MODALITIES, Manifest, Scan, require_one_spelling
from medsynth_lib.data.files.nifti import stored_voxels
from medsynth_lib.data.files.paths import is_hidden, split_volume
from medsynth_lib.files import DataError, atomic, cache_folder, fingerprint
from medsynth_lib.processes import run

VERSION = 1  # raise when a content is computed in another way
BLANK = "blank"  # the content of an image of one value, such as empty labels: it tells nobody from another
SHOWN = 5  # pairs that an error names

Cell = tuple[Scan, str]  # a scan and one of its modalities


def require_distinct(
    manifest: Manifest, modalities: Iterable[str] = MODALITIES, jobs: int = 1, progress: bool = False
) -> None:
    """Require that no two cells of a manifest hold one image.

    Files that cannot be read are passed over here, since their reader says so. Simulated scans are not read.

    Args:
        manifest: scans as they were found, before anything is made of them.
        modalities: the columns whose voxels are compared. The files themselves are compared in all columns.
        jobs: processes that read.
        progress: show a progress bar.

    Raises:
        DataError: with both names, where a cell names the file or a copy of the file that another cell names, and for one
            subject under two spellings.
    """
    require_one_spelling(manifest)
    scans = [scan for scan in manifest.scans() if not scan.simulated]
    cells = [(scan, modality) for scan in scans for modality in MODALITIES if scan.has(modality)]
    _refuse_shared(manifest, cells, [_file_key(scan.path(modality)) for scan, modality in cells], "are one file")
    wanted = set(modalities)
    cells = [cell for cell in cells if cell[1] in wanted]
    contents = contents_of([scan.path(modality) for scan, modality in cells], jobs, progress)
    keys = [None if content == BLANK else content for content in contents]
    _refuse_shared(manifest, cells, keys, "hold one image")


def contents_of(paths: list[Path], jobs: int = 1, progress: bool = False) -> list[str | None]:
    """Return `content_of` of each path; None where it cannot be read.

    Args:
        paths: of images.
        jobs: processes that read.
        progress: show a progress bar.
    """
    files = {split_volume(path)[0]: path for path in paths}  # each 4D file is read once
    run(_content_or_none, [(path,) for path in files.values()], jobs, None, progress, "comparing scans", "file")
    return [_content_or_none(path) for path in paths]


def _content_or_none(path: Path) -> str | None:
    try:
        return content_of(path)
    except DataError:
        return None


def content_of(path: Path | str) -> str:
    """Return what tells an image from all others: a hash of its voxels, or `BLANK`.

    It is remembered in the cache as long as the file's size and times stay.

    Args:
        path: a NIfTI file, a volume of a 4D one ("scan.nii.gz#2"), or the folder of a DICOM series.

    Raises:
        DataError: for a file that cannot be read.
    """
    file, number = split_volume(path)
    try:
        key = fingerprint(VERSION, file.resolve(), _state(file))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the path, or copy the file again."
        ) from error
    kept = cache_folder("contents", key[:2]) / f"{key}.json"
    contents = _remembered(kept)
    if contents is None or len(contents) <= (number or 0):
        contents = _series(file) if file.is_dir() else _volumes(path)
        with atomic(kept) as temporary:
            temporary.write_text(json.dumps(contents), encoding="utf-8")
    return contents[number or 0]


def _state(file: Path) -> list:
    """What changes with a file, or with the files of a folder."""
    if file.is_dir():
        return [[path.name, *_state(path)] for path in sorted(file.iterdir()) if path.is_file()]
    state = file.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _remembered(kept: Path) -> list[str] | None:
    try:
        contents = json.loads(kept.read_text(encoding="utf-8"))
        return contents if isinstance(contents, list) else None
    except (OSError, ValueError):
        return None


def _volumes(path: Path | str) -> list[str]:
    """The contents of all volumes of a NIfTI file."""
    data, affine = stored_voxels(path)
    data = nib.orientations.apply_orientation(data, nib.io_orientation(affine))
    return [_hash(data[..., k]) for k in range(data.shape[3])] if data.ndim == 4 else [_hash(data)]


def _series(folder: Path) -> list[str]:
    """The content of a DICOM series: of its slices, in whatever files and order they are."""
    slices = sorted(filter(None, map(_slice, sorted(folder.iterdir()))))
    if not slices:
        raise DataError(f"{folder}: holds no readable DICOM; download the series again.")
    return [sha256("".join(slices).encode()).hexdigest() if set(slices) - {BLANK} else BLANK]


def _slice(path: Path) -> str | None:
    """The content of one file of a DICOM series; None for a file that is no image."""
    if not path.is_file() or is_hidden(path.name):
        return None
    try:
        return _hash(sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO")))
    except RuntimeError:
        return None


def _hash(data: np.ndarray) -> str:
    if not data.size or (data == data.flat[0]).all():
        return BLANK
    voxels = np.ascontiguousarray(data, "<f4") + np.float32(0)  # -0 becomes 0
    return sha256(repr(voxels.shape).encode() + voxels.tobytes()).hexdigest()


def _file_key(path: Path) -> tuple | None:
    """What two names of one file share: links count as the file that they lead to."""
    file, number = split_volume(path)
    try:
        state = file.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino, number


def _refuse_shared(manifest: Manifest, cells: list[Cell], keys: list, what: str) -> None:
    """Raise DataError where two cells have one key; None is no key."""
    first: dict[object, Cell] = {}
    shared = []
    for cell, key in zip(cells, keys, strict=True):
        if key is not None and first.setdefault(key, cell) is not cell:
            shared.append(f"{_name(first[key])} and {_name(cell)}")
    if shared:
        more = f"; and {len(shared) - SHOWN} more pair(s)" if len(shared) > SHOWN else ""
        raise DataError(
            f"{manifest.root}: these {what}: {'; '.join(shared[:SHOWN])}{more}. "
            "Name the right file in each cell, and keep each scan once, under one subject."
        )


def _name(cell: Cell) -> str:
    scan, modality = cell
    split = f", {scan['split']}" if scan.get("split") else ""
    return f"{modality} of {scan['subject']} ({scan['site']}{split}), {scan[modality]}"
