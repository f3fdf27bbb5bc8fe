"""Unpack archives of strangers: everything is looked at before anything is written, and nothing is written outside the folder."""

import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from medsynth_lib.files import DataError, atomic


def unpack(archive, folder, limit_bytes):
    """Unpack a tar, tar.gz or zip into ``folder``, which appears whole or not at all.

    Raises DataError, naming archive and member, for absolute paths, "..", links, devices, names that differ in case alone,
    contents beyond ``limit_bytes``, and damaged archives; nothing is left behind then.
    """
    archive, folder = Path(archive), Path(folder)
    with atomic(folder) as temporary:
        temporary.mkdir()
        try:
            if zipfile.is_zipfile(archive):
                unpack_zip(archive, temporary, limit_bytes)
            else:
                unpack_tar(archive, temporary, limit_bytes)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
            raise DataError(f"{archive}: the archive is damaged ({error}); delete it and download it again.") from error
        except (ValueError, UnicodeError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{archive}: the archive is damaged ({error}); delete it and download it again.") from error
    return folder


def unpack_tar(archive, folder, limit_bytes):
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        check([(m.name, m.size if m.isfile() else 0, m.isfile() or m.isdir()) for m in members], archive, limit_bytes)
        for member in members:
            tar.extract(member, folder, set_attrs=False, filter="data")


def unpack_zip(archive, folder, limit_bytes):
    with zipfile.ZipFile(archive) as bundle:
        members = bundle.infolist()
        kinds = [(m.external_attr >> 16) & 0o170000 for m in members]  # Unix file type; 0 where the writer gave none
        plain = [kind in (0, 0o100000, 0o040000) for kind in kinds]
        check([(m.orig_filename, m.file_size, ok) for m, ok in zip(members, plain, strict=True)], archive, limit_bytes)
        written = 0
        for member in members:
            target = folder / member.filename
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with bundle.open(member) as source, target.open("wb") as sink:
                while block := source.read(2**20):
                    written += len(block)
                    if written > limit_bytes:  # the stated size may lie
                        raise too_large(archive, member.filename, limit_bytes)
                    sink.write(block)


def check(members, archive, limit_bytes):
    """Refuse (name, bytes, is a plain file or folder) of any member that could do harm."""
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


def danger(name):
    """What is wrong with a member's name; None where nothing is."""
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


def too_large(archive, name, limit_bytes):
    return DataError(
        f"{archive}: unpacks to more than {limit_bytes / 1e9:.3g} GB (at member {name[:200]!r}); it is not what the registry "
        "describes. Nothing was unpacked."
    )


def merge(source, folder):
    """Move what lies in ``source`` into ``folder``, replacing what is there of the same name, and remove ``source``."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        target = folder / entry.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(entry, target)
    source.rmdir()
