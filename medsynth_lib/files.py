"""Where things are kept, and how they are written so that a crash leaves either the old file or the new one."""

import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path


def cache_folder(*parts):
    """Folder for what can be made again (atlas, simulated data, trained models): MEDSYNTH_CACHE or ~/.cache/medsynth."""
    root = os.environ.get("MEDSYNTH_CACHE") or Path.home() / ".cache" / "medsynth"
    folder = Path(root, *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def atomic(path):
    """Yield a temporary path beside ``path``; it takes the name ``path`` if the block succeeds and vanishes if it fails.

    The suffix is kept, since writers choose the format by it. Works for a file or, where the block makes one, a folder;
    a folder never replaces one that another process finished first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        if not (temporary.is_dir() and path.is_dir()):
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
