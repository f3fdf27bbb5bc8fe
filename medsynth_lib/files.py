"""Where things are kept, and how they are written so that a crash leaves either the old file or the new one."""

import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class DataError(ValueError):
    """A file or folder that cannot be used or written; the message names it, the value and the remedy."""


def cache_folder(*parts):
    """Folder for what can be made again (atlas, simulated data, trained models): MEDSYNTH_CACHE or ~/.cache/medsynth.

    Raises DataError where it cannot be made.
    """
    folder = Path(os.environ.get("MEDSYNTH_CACHE") or Path.home() / ".cache" / "medsynth", *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be made ({error.strerror}); set MEDSYNTH_CACHE to a folder that can be written."
        ) from error
    return folder


@contextmanager
def atomic(path):
    """Yield a temporary path beside ``path``; it takes the name ``path`` if the block succeeds and vanishes if it fails.

    The suffix is kept, since writers choose the format by it. Works for a file or, where the block makes one, a folder;
    a folder never replaces one that another process finished first. Raises DataError where the disk is full or the
    place cannot be written; an earlier file of that name then stays.
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
