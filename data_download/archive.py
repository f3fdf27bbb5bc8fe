"""Unpack archives of strangers: everything is looked at before anything is written, and nothing is written outside the folder."""

import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from medsynth_lib.files import DataError, atomic

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError, RuntimeError)
DAMAGE += (ValueError, OverflowError, OSError)  # what damaged bytes make the standard library raise


def unpack(archive: Path, folder: Path, limit_bytes: int) -> None:
    """Unpack a tar or zip archive into a folder, which appears whole or not at all.

    Args:
        archive: a tar, packed by gzip, bzip2, xz or not, or a zip.
        folder: where to.
        limit_bytes: contents beyond it are refused.

    Raises:
        DataError: naming archive and member, for absolute paths, "..", links, devices, members whose names differ in case
            alone, contents beyond the limit, and damaged archives. Nothing is left behind then.
    """
    archive, folder = Path(archive), Path(folder)
    with atomic(folder) as temporary:
        temporary.mkdir()
        try:
            if zipfile.is_zipfile(archive):
                unpack_zip(archive, temporary, limit_bytes)
            else:
                unpack_tar(archive, temporary, limit_bytes)
        except DAMAGE as error:
            # our own refusal, or the disk's error: those of gzip and bzip2 have no number
            if isinstance(error, DataError) or getattr(error, "errno", None) is not None:
                raise
            reason = str(error).partition("\n")[0]
            raise DataError(
                f"{archive}: the archive is damaged ({reason}); delete it and download it again."
            ) from error
    return folder


def unpack_tar(archive: Path, folder: Path, limit_bytes: int) -> None:
    """Unpack a tar, member by checked member."""
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        check([(m.name, m.size if m.isfile() else 0, m.isfile() or m.isdir()) for m in members], archive, limit_bytes)
        for member in members:
            tar.extract(member, folder, set_attrs=False, filter="data")
        while tar.fileobj.read(2**20):  # to its end, where gzip and xz have the checksum of it all
            pass


def unpack_zip(archive: Path, folder: Path, limit_bytes: int) -> None:
    """Unpack a zip, member by checked member."""
    with zipfile.ZipFile(archive) as bundle:
        members = bundle.infolist()
        kinds = [(m.external_attr >> 16) & 0o170000 for m in members]  # Unix file type; 0 where the writer gave none
        plain = [kind in (0, 0o100000, 0o040000) for kind in kinds]
        check([(m.orig_filename, m.file_size, ok) for m, ok in zip(members, plain, strict=True)], archive, limit_bytes)
        for member in members:
            if member.filename != member.orig_filename:  # newer Pythons read the first from a field "Unicode Path"
                raise DataError(
                    f"{archive}: member {member.orig_filename[:200]!r} has a second name, {member.filename[:200]!r}; "
                    "nothing was unpacked. Is this the publisher's archive?"
                )
            target = folder / member.filename
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with bundle.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)  # never more than the stated size, and then its checksum must fit


def check(members: Iterable[tuple[str, int, bool]], archive: Path, limit_bytes: int) -> None:
    """Refuse any member that could do harm.

    Args:
        members: (name, bytes, is a plain file or folder).
        archive: what errors name.
        limit_bytes: of all contents together.
    """
    seen, total = {}, 0
    for name, size, plain in members:
        reason = danger(name)
        if not plain:
            reason = "is a link or a device"
        if reason:
            raise DataError(
                f"{archive}: member {name[:200]!r} {reason}; nothing was unpacked. Is this the publisher's archive?"
            )
        key = str(PurePosixPath(name)).casefold()
        if seen.setdefault(key, name) != name:
            raise DataError(
                f"{archive}: members {seen[key]!r} and {name!r} differ in case alone; nothing was unpacked."
            )
        total += size
        if total > limit_bytes:
            raise too_large(archive, name, limit_bytes)


def danger(name: str) -> str | None:
    """Say what is wrong with a member's name; None where nothing is."""
    if "\0" in name or "\\" in name or any(ord(c) < 32 for c in name):
        return "has a name with control characters or backslashes"
    path = PurePosixPath(name)
    if path.is_absolute() or (len(name) > 1 and name[1] == ":"):
        return "has an absolute path"
    if ".." in path.parts:
        return "points outside the folder"
    if any(len(os.fsencode(part)) > 255 for part in path.parts):
        return "has a name of more than 255 bytes"
    return None


def too_large(archive: Path, name: str, limit_bytes: int) -> DataError:
    """The error for contents beyond the limit."""
    return DataError(
        f"{archive}: unpacks to more than {limit_bytes / 1e9:.3g} GB (at member {name[:200]!r}); it is not what the registry "
        "describes. Nothing was unpacked."
    )


def merge(source: Path, folder: Path) -> None:
    """Move the contents of one folder into another, and remove the first.

    What has the same name is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        target = folder / entry.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(entry, target)
    source.rmdir()
