"""Names of image files: endings in any case, a volume of a 4D file, and what lies in a folder of real data."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from medsynth_lib.files import DataError

NO_IMAGES = ("dicomdir", "readme", "license", "version")  # files without an ending that are no slices
NIFTI = (".nii.gz", ".nii")
VOLUME = re.compile(r"(?P<file>.*\.nii(?:\.gz)?)#(?P<number>\d+)", re.IGNORECASE | re.DOTALL)
SYSTEM = ("__macosx", "$recycle.bin", "system volume information", "@eadir", "lost+found")  # made by no researcher


def split_volume(path: Path | str) -> tuple[Path, int | None]:
    """Split "scan.nii.gz#2" into the file and the number of its volume.

    Args:
        path: a cell of a manifest, or its path. Any other "#" belongs to the name, and so does this one where a file has
            the whole name.

    Returns:
        The file, and the number of the volume in it from 0; None: the file holds one volume.
    """
    match = VOLUME.fullmatch(str(path))
    if match is None or Path(path).is_file():
        return Path(path), None
    return Path(match["file"]), int(match["number"])


def stem(path: Path) -> str:
    """Return a file's name without .nii or .nii.gz, in any case."""
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def ending(path: Path) -> str:
    """Return a name's ending in lower case; names that end in a number, as UIDs do, have none."""
    return "" if path.suffix[1:].isdigit() else path.suffix.lower()


def find_files(folder: Path | str, endings: tuple[str, ...] = NIFTI) -> list[Path]:
    """List the files at any depth with one of the endings, in any case.

    They are sorted within each folder.

    Args:
        folder: where to look; see `walk` for what is left out.
        endings: lower case, with their dots.

    Raises:
        DataError: for a folder that cannot be listed.
    """
    return [root / name for root, names in walk(folder) for name in names if name.lower().endswith(endings)]


def walk(folder: Path | str) -> Iterator[tuple[Path, list[str]]]:
    """Visit a folder and all below it once: hidden ones are left out, links followed.

    Args:
        folder: where to begin. It may itself be hidden or a link.

    Yields:
        A folder, and the sorted names of its files that are not hidden.

    Raises:
        DataError: for a folder that cannot be listed.
    """
    top = Path(folder).resolve()
    seen = {top}
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        kept = []
        for name in sorted(folders):
            real = Path(root, name).resolve()
            if not is_hidden(name) and real not in seen and not top.is_relative_to(real):
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        yield Path(root), sorted(name for name in names if not is_hidden(name))


def is_hidden(name: str) -> bool:
    """Return whether a name is hidden, or that of an operating system's own folder."""
    return name.startswith(".") or name.lower() in SYSTEM


def _refuse(error: OSError) -> None:
    """Raise what os.walk would pass over in silence."""
    raise DataError(
        f"{error.filename}: cannot be listed ({error.strerror}); give yourself the right to read it, or move it away."
    ) from error
