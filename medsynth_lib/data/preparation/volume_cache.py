"""Prepared volumes on disk: made once, one memory-mapped file a volume, with an index of sizes and hashes.

A cache is a folder of .safetensors files and index.json, written last. A value v is stored as q = round((v - low) / scale),
16 bits, with low, high and scale = (high - low) / 65535 of its volume and channel. What comes back, low + q scale, is off by at
most scale / 2 (plus float32 rounding). low comes back exactly, so that a background of -1 or 0 stays one where it is the
smallest value. Labels do not survive: keep them elsewhere.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.data import Dataset

from medsynth_lib.files import DataError, atomic, content_hash, fingerprint
from medsynth_lib.processes import run

FORMAT = 2  # raise when the files change; a cache of another format is refused
INDEX = "index.json"
LEVELS = 2**16 - 1

Make = Callable[..., tuple[np.ndarray, dict[str, Any]]]


def build(
    make: Make, tasks: Iterable[tuple], folder: Path | str, key: str, jobs: int = 1, progress: bool = False
) -> "StoredVolumes":
    """Write the volumes of `make(*task)` to a cache, once, and open it.

    An interrupted build goes on with the missing volumes, and a finished one does nothing. Two builds at once end well,
    since a file appears by one rename. A volume whose file was deleted is made anew.

    Args:
        make: a function at the top of a module; returns a finite volume (c, x, y, z) and a dictionary of JSON values.
            Made twice, a volume must be the same.
        tasks: argument tuples, one a volume.
        folder: of the cache.
        key: names all that the content depends on, such as a `fingerprint` of scans and contract.
        jobs: worker processes.
        progress: show a progress bar.

    Raises:
        DataError: for a folder with other content, a damaged file, an unusable volume, or where nothing can be written.
    """
    folder, tasks = Path(folder), list(tasks)
    plan, index = dict(format=FORMAT, key=key, number=len(tasks)), folder / INDEX
    known = read_index(index, plan)["files"] if index.exists() else []
    kept = [file for file in known if (folder / file["name"]).exists()]
    if not known or kept != known:
        targets = [folder / f"{fingerprint(plan, digits=8)}-{i:06d}.safetensors" for i in range(len(tasks))]
        todo = [(make, task, target) for task, target in zip(tasks, targets, strict=True)]
        files = run(write_volume, todo, jobs, folder, progress, "preparing", "volume")
        if changed := [file for file in kept if file not in files]:
            raise damaged(folder / changed[0]["name"])
        content = plan | dict(files=files)
        with atomic(index) as temporary:
            temporary.write_text(json.dumps(content | dict(fingerprint=fingerprint(content)), indent=1) + "\n")
    return StoredVolumes(folder)


def write_volume(make: Make, task: tuple, path: Path) -> dict[str, Any]:
    """Make one volume and write it, unless it is there; return name, bytes and hash of the file."""
    if not path.exists():
        volume, about = make(*task)  # outside `atomic`: its errors are not the disk's
        volume = np.asarray(volume, dtype=np.float32)
        if volume.ndim != 4 or volume.size == 0 or not np.isfinite(volume).all():
            raise DataError(
                f"{path}: its volume has shape {volume.shape} or values that are not finite; mend the scan."
            )
        with atomic(path) as temporary:
            save_file(quantise(volume), temporary, {"about": json.dumps(about)})
    return dict(name=path.name, bytes=path.stat().st_size, sha256=content_hash(path))


def quantise(volume: np.ndarray) -> dict[str, np.ndarray]:
    """Turn a finite volume (c, x, y, z) into 16-bit integers "stored", "low" and "high" (c)."""
    low, high = (f(volume, axis=(1, 2, 3)).astype(np.float64) for f in (np.min, np.max))
    stored = np.zeros(volume.shape, np.uint16)
    for out, channel, a, b in zip(stored, volume, low, high, strict=True):
        if b > a:
            out[...] = np.rint((channel.astype(np.float64) - a) / (b - a) * LEVELS)
    return dict(stored=stored, low=low, high=high)


def dequantise(stored: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Undo `quantise`: float32 values (c, x, y, z)."""
    values = np.empty(stored.shape, np.float32)
    for out, channel, a, b in zip(values, stored, low, high, strict=True):
        np.multiply(channel, np.float32((b - a) / LEVELS), out=out, dtype=np.float32)
        out += np.float32(a)
    return values


def read_index(path: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Read index.json; DataError where it is missing, damaged, or of another plan."""
    try:
        content = json.loads(path.read_bytes())
        intact = content.pop("fingerprint") == fingerprint(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); build the cache, or finish its build.") from error
    except (ValueError, AttributeError, KeyError, TypeError):
        intact = False
    if not intact:
        raise damaged(path)
    for name, wanted in plan.items():
        if content.get(name) != wanted:
            raise DataError(
                f"{path}: holds other content ({name} {content.get(name)!r}, wanted {wanted!r}); "
                "choose another folder, or delete this one."
            )
    return content


def damaged(path: Path) -> DataError:
    """The error for a file that is not as it was written."""
    return DataError(f"{path}: is damaged or missing; delete it and build again: what is intact is used.")


class StoredVolumes(Dataset):
    """The volumes of a cache that `build` made: `[i]` is what `make` told of volume i plus "x", float32 (c, x, y, z).

    Opening checks the index and every file's size. The first read of a volume checks its hash. Nothing is held open.

    Raises:
        DataError: for a missing or incomplete cache, one of another format, and a damaged file.
    """

    def __init__(self, folder: Path | str):
        self.folder, self._checked = Path(folder), set()
        self.files = read_index(self.folder / INDEX, dict(format=FORMAT))["files"]
        for file in self.files:
            path = self.folder / file["name"]
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise damaged(path)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        path = self.folder / file["name"]
        try:
            if file["name"] not in self._checked and content_hash(path) != file["sha256"]:
                raise damaged(path)
            with safe_open(path, "np") as opened:
                stored = {name: opened.get_tensor(name) for name in ("stored", "low", "high")}
                about = json.loads(opened.metadata()["about"])
        except (OSError, SafetensorError) as error:
            raise damaged(path) from error
        self._checked.add(file["name"])
        return about | {"x": torch.from_numpy(dequantise(**stored))}
