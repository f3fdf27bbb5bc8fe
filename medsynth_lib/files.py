"""Where things are kept, what they are called, and how they are written: a crash leaves the old file or the new one."""

import dataclasses
import getpass
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError


class DataError(ValueError):
    """A file or folder that cannot be used or written; the message names it, the value and the remedy."""


def say_once(kind: str, line: str) -> None:
    """Print a line the first time that a process has something of this kind to say."""
    if kind not in SAID:
        SAID.add(kind)
        print(line, flush=True)


SAID: set[str] = set()


def cache_folder(*parts: str) -> Path:
    """Make a folder for what can be made again, below MEDSYNTH_CACHE or ~/.cache/medsynth.

    Args:
        parts: names of nested folders, such as "artefacts".

    Returns:
        The folder, which exists.

    Raises:
        DataError: where the folder cannot be made, or no home folder is known.
    """
    try:
        folder = Path(full_path(os.environ.get("MEDSYNTH_CACHE") or "~/.cache/medsynth"), *parts)
    except DataError as error:
        raise DataError(f"{error} Or set MEDSYNTH_CACHE to a folder that can be written.") from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be made ({error.strerror}); set MEDSYNTH_CACHE to a folder that can be written."
        ) from error
    return folder


def provide_home() -> None:
    """Give a user without a name or a home both, since other packages ask for them on import.

    Such a user is that of a container with an unknown number. The home is a folder of the cache.

    Raises:
        DataError: where MEDSYNTH_CACHE is not set either.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(cache_folder("home"))
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = "medsynth"


def full_path(path: Path | str) -> Path:
    """Return an absolute path, where ~ stands for the home folder.

    Raises:
        DataError: where ~ is used and the home folder is not known, as in a container with an unknown user.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise DataError(f"{path}: the home folder is not known; give the path without ~, or set HOME.") from error


@contextmanager
def reserved(folder: Path | str) -> Iterator[None]:
    """Keep a folder to this process while the block runs.

    The lock ends with the process, however that ends.

    Args:
        folder: is made where it does not exist.

    Raises:
        DataError: where another process holds it, or it is no folder that can be written.
    """
    lock = FileLock(Path(folder) / ".lock", timeout=0)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise DataError(f"{folder}: is in use by another run; wait until it ends, or choose another folder.") from error
    except OSError as error:
        raise DataError(
            f"{folder}: is no folder that can be written ({error.strerror}); choose another one."
        ) from error
    try:
        yield
    finally:
        lock.release()


def print_anywhere() -> None:
    """Make a terminal's missing letters print as escapes: no text may end a program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def fingerprint(*parts: Any, digits: int = 16) -> str:
    """Name what a result depends on: hexadecimal digits that change with every part.

    Args:
        parts: JSON values, paths as text, NumPy numbers, and dataclasses, nested as needed. A dictionary's order and the
            difference between a tuple and a list do not count.
        digits: how many of the 64 hexadecimal digits of the SHA-256 are returned.

    Returns:
        Lower-case hexadecimal text, the same on every machine.

    Raises:
        TypeError: for a part that has no JSON form.
        ValueError: for a number that is NaN or infinite.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _plain(value: Any) -> Any:
    """The JSON form of what the json module does not know."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return value.as_posix()
    if hasattr(value, "item"):  # a NumPy number
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__} has no JSON form; give plain values to fingerprint().")


def content_hash(content: Path | str | bytes) -> str:
    """Return the SHA-256 of a file or of bytes in memory: 64 hexadecimal digits.

    Args:
        content: the path of a file, which is read piece by piece, or the bytes themselves.

    Raises:
        OSError: for a file that cannot be read.
    """
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes that name if the block succeeds.

    It vanishes if the block fails.

    The suffix is kept, since writers choose the format by it. The block writes a file or makes a folder. A folder never
    replaces one that another process finished first.

    Args:
        path: the final name; missing folders above it are made.

    Raises:
        DataError: where the disk is full or the place cannot be written. An earlier file of that name then stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        try:
            os.replace(temporary, path)
        except OSError:
            if not (temporary.is_dir() and path.is_dir()):
                raise
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk by an error of its own
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{path}: cannot be written ({reason}); free disk space or choose a writable folder."
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        elif temporary.exists():
            temporary.unlink()
