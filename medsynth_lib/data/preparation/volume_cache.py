"""Sharded cache: prepared volumes as 8 or 16 bit numbers, memory-mapped, so that loading does not hold up training.

A cache is a folder: one sub-folder a shard (0000, 0001, ...) and the index shards.json, written last.

    0000/volumes.npy   unsigned integers (items, c, x, y, z) in C order: slices of x are contiguous within a channel
    0000/items.json    value range and metadata of its items, and the checksum of volumes.npy
    shards.json        the same of all shards, read when the cache is opened

A value v is stored as q = round((v - low) / scale), with low, high and scale = (high - low) / (2^bits - 1) of its item and
channel. What comes back, low + q scale, is off by at most scale / 2 (plus float32 rounding); low comes back exactly, high
within rounding, so a background of -1 or 0 stays one where it is the smallest value. Labels do not survive: keep them elsewhere.
"""

import hashlib
import json
import mmap
import re
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from medsynth_lib.files import DataError, atomic
from medsynth_lib.processes import run

FORMAT = 1  # raise when the files change; a cache of another format is refused
INDEX, VOLUMES, ITEMS = "shards.json", "volumes.npy", "items.json"
LARGEST = 1e38  # beyond it, a range would overflow float32
STALE_SECONDS = 3600  # a living build touches its temporary files more often than that
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.(\d{4,}|shards\.json)")  # the names that `atomic` gives


def build(make, tasks, folder, key, bits=8, items_per_shard=16, jobs=1, progress=False):
    """Write the volumes of ``make(*task)`` for all tasks to a cache, once, and open it.

    Args:
        make: function at the top of a module; returns a finite volume (c, x, y, z), all of one shape, and a dictionary of
            JSON values such as dict(subject="S1", site="A").
        tasks: list of argument tuples, one an item.
        key: text that names all the content depends on, for instance a hash of the recipe and the manifest.
        bits: 8 or 16. items_per_shard: so many items are held in memory, quantised, by each of the ``jobs`` processes.

    An interrupted build goes on with the missing shards, a finished one does nothing, and two at once end well: a
    shard appears by one rename, and the first stays. A shard that was deleted because it was damaged is made anew.
    Raises DataError for a folder with other content, for unusable volumes or metadata, or where it cannot be written.
    """
    folder, tasks = Path(folder), list(tasks)
    if bits not in (8, 16) or items_per_shard < 1 or not tasks:
        raise DataError(
            f"{folder}: cannot hold {len(tasks)} items of {bits} bits, {items_per_shard} a shard; "
            "give at least one item, 8 or 16 bits and at least one item a shard."
        )
    plan = dict(format=FORMAT, key=key, bits=bits, number=len(tasks), items_per_shard=items_per_shard)
    remove_leftovers(folder)
    firsts = range(0, len(tasks), items_per_shard)
    targets = [folder / f"{n:04d}" for n in range(len(firsts))]
    for path in (folder / INDEX, *(target / ITEMS for target in targets)):
        if path.exists():
            require_plan(path, plan)
    missing = [
        (make, tasks[first : first + items_per_shard], target, plan, first)
        for first, target in zip(firsts, targets, strict=True)
        if not target.exists()
    ]
    run(write_shard, missing, jobs, folder, progress, "sharding", "shard")
    if missing or not (folder / INDEX).exists():
        write_index(folder, targets, plan)
    return ShardedVolumes(folder)


def require_plan(path, plan):
    """Raise DataError where the file at ``path`` belongs to a cache of other content."""
    found = read_sealed(path)
    for name, wanted in plan.items():
        if found[name] != wanted:
            raise DataError(
                f"{path}: holds other content ({name} {found[name]!r}, wanted {wanted!r}); "
                "choose another folder or delete this one."
            )


def write_shard(make, tasks, target, plan, first):
    """Make the items of one shard and write them to the folder ``target``, which appears complete or not at all."""
    if target.exists():  # another build was faster
        return
    stored, items = None, []
    for position, task in enumerate(tasks):
        volume, metadata = make(*task)  # outside `atomic`: its errors are not the disk's
        volume = checked(volume, metadata, f"{target}: item {first + position}")
        if stored is None:
            stored = np.empty((len(tasks), *volume.shape), f"<u{plan['bits'] // 8}")
        if volume.shape != stored.shape[1:]:
            raise DataError(
                f"{target}: item {first + position} has shape {volume.shape}, item {first} {stored.shape[1:]}; "
                "bring all to one shape."
            )
        stored[position], low, high = quantise(volume, plan["bits"])
        items.append(dict(low=low, high=high, metadata=metadata))
    with atomic(target) as temporary:
        temporary.mkdir()
        with open(temporary / VOLUMES, "wb") as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(stored))
            file.write(stored)
        written = (temporary / VOLUMES).stat().st_size
        shard = dict(
            name=target.name,
            first=first,
            stop=first + len(items),
            bytes=written,
            header=first_bytes(temporary / VOLUMES, written - stored.nbytes).hex(),
            blake2b=digest(temporary / VOLUMES),
        )
        content = plan | dict(shape=stored.shape[1:], shard=shard, items=items)
        (temporary / ITEMS).write_text(sealed(content), encoding="utf-8")


def checked(volume, metadata, name):
    """The volume as float32 (c, x, y, z); DataError where it or its metadata cannot be stored."""
    volume = np.asarray(volume, dtype=np.float32)
    if volume.ndim != 4 or volume.size == 0:
        raise DataError(f"{name} has shape {volume.shape}; give a volume (c, x, y, z).")
    bad = volume.size - np.count_nonzero(np.abs(volume) <= LARGEST)
    if bad:
        raise DataError(f"{name} has {bad} of {volume.size} values that are NaN, infinite or beyond 1e38; mend them.")
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} has metadata {metadata!r} that JSON cannot hold ({error}); use plain values."
        ) from error
    if not isinstance(metadata, dict) or "x" in metadata:
        raise DataError(f"{name} has metadata {metadata!r}; give a dictionary without 'x', the volume's own name.")
    return volume


def quantise(volume, bits):
    """Finite float volume (c, x, y, z) -> unsigned integers of the same shape, and low and high of each channel."""
    levels = 2**bits - 1
    stored = np.zeros(volume.shape, f"<u{bits // 8}")
    low, high = ([float(f(channel)) for channel in volume] for f in (np.min, np.max))
    for out, channel, a, b in zip(stored, volume, low, high, strict=True):
        if b > a:
            out[...] = np.rint((channel.astype(np.float64) - a) / (b - a) * levels)
    return stored, low, high


def dequantise(stored, low, high, bits):
    """The inverse of `quantise` for one channel: unsigned integers -> float32 of the same shape."""
    values = np.multiply(stored, np.float32((high - low) / (2**bits - 1)), dtype=np.float32)
    values += np.float32(low)
    return values


def write_index(folder, targets, plan):
    """Gather the facts of all finished shards in shards.json; DataError where their shapes differ."""
    facts = [read_sealed(target / ITEMS) for target in targets]
    shape = facts[0]["shape"]
    for target, fact in zip(targets, facts, strict=True):
        if fact["shape"] != shape:
            raise DataError(f"{target}: volumes {fact['shape']}, but {targets[0]}: {shape}; bring all to one shape.")
    content = dict(shape=shape, shards=[f["shard"] for f in facts], items=sum((f["items"] for f in facts), []))
    with atomic(folder / INDEX) as temporary:
        temporary.write_text(sealed(plan | content), encoding="utf-8")


def remove_leftovers(folder):
    """Remove temporary files that killed builds left behind, unless they are so young that a build may be writing them."""
    for path in folder.glob(".*"):
        if not TEMPORARY.fullmatch(path.name):
            continue
        try:
            touched = max(p.stat().st_mtime for p in (path, *path.glob("*")))
        except FileNotFoundError:  # it got its final name meanwhile
            continue
        if time.time() - touched > STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def sealed(content):
    """JSON text of a dictionary with the checksum of its content."""
    content = json.loads(json.dumps(content))  # as it will be read: number keys become text, tuples lists
    return json.dumps(content | {"checksum": content_digest(content)}, indent=1) + "\n"


def content_digest(content):
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_sealed(path):
    """The dictionary that `sealed` wrote; DataError where the file is missing, damaged or of another format."""
    remedy = f"delete {path if path.name == INDEX else path.parent} and build again: intact shards are used."
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; build the cache, or finish its build.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the folder.") from error
    except ValueError:  # not JSON, or not even text
        raise DataError(f"{path}: is damaged; {remedy}") from None
    if isinstance(content, dict) and content.get("format") != FORMAT:
        raise DataError(
            f"{path}: has format {content.get('format')!r}, but this is for format {FORMAT}; "
            "delete the folder and build again."
        )
    if not isinstance(content, dict) or content.pop("checksum", None) != content_digest(content):
        raise DataError(f"{path}: is damaged (its checksum differs); {remedy}")
    return content


def digest(path):
    """Checksum of a file, 32 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def first_bytes(path, count):
    with open(path, "rb") as file:
        return file.read(count)


class ShardedVolumes(Dataset):
    """The volumes of a cache that `build` made: ``[i]`` is the metadata of item i plus x, float32 (c, x, y, z).

    Opening checks the index, the size of every file and its header; `check` also checks every byte. Nothing is kept in
    memory or held open: each read maps the bytes it needs, so that processes share the system's page cache. On the two
    cores measured, a DataLoader's workers gave fewer volumes a second than reading here: handing float32 over costs more.

    Attributes: ``shape`` of one volume (c, x, y, z), ``bits``, ``key``, ``metadata`` (one dictionary an item).
    Raises DataError for a missing, damaged or incomplete cache, or one of another format.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        index = read_sealed(self.folder / INDEX)
        self.shape, self.bits, self.key = tuple(index["shape"]), index["bits"], index["key"]
        self.shards, self.items_per_shard = index["shards"], index["items_per_shard"]
        self.dtype = np.dtype(f"<u{self.bits // 8}")
        self.metadata = [item["metadata"] for item in index["items"]]
        self._ranges = [list(zip(item["low"], item["high"], strict=True)) for item in index["items"]]
        self._headers = [self._header(shard) for shard in self.shards]  # bytes before the first voxel

    def _header(self, shard):
        path = self.folder / shard["name"] / VOLUMES
        if not path.is_file():
            raise DataError(f"{path}: no such file; {self._remedy(shard)}")
        if path.stat().st_size != shard["bytes"]:
            raise DataError(
                f"{path}: has {path.stat().st_size} bytes where {shard['bytes']} were written; {self._remedy(shard)}"
            )
        voxels = (shard["stop"] - shard["first"]) * int(np.prod(self.shape)) * self.dtype.itemsize
        header = first_bytes(path, shard["bytes"] - voxels)
        if header.hex() != shard["header"]:
            raise DataError(f"{path}: its header is damaged; {self._remedy(shard)}")
        return len(header)

    def _remedy(self, shard):
        return f"delete the folder {self.folder / shard['name']} and build again."

    def __len__(self):
        return len(self.metadata)

    def __getitem__(self, i):
        return dict(x=self.read(i), **self.metadata[i])

    def read(self, i, start=None, stop=None):
        """Item i, or its slices start to stop along the first spatial axis: float32 tensor (c, stop - start, y, z).

        Only the bytes of these slices are read. Raises IndexError for an item or slices that do not exist.
        """
        i = range(len(self))[i]
        stored = self.maps(i, start, stop)
        values = [dequantise(q, *limits, self.bits) for q, limits in zip(stored, self._ranges[i], strict=True)]
        return torch.from_numpy(values[0][None] if len(values) == 1 else np.stack(values))

    def maps(self, i, start=None, stop=None):
        """The stored integers of these slices: one read-only np.memmap (stop - start, y, z) a channel, of no more bytes."""
        channels, *space = self.shape
        start, stop = 0 if start is None else start, space[0] if stop is None else stop
        if not 0 <= start < stop <= space[0]:
            raise IndexError(f"slices {start} to {stop} of a volume with slices 0 to {space[0]}")
        shard, position = divmod(range(len(self))[i], self.items_per_shard)
        path = self.folder / self.shards[shard]["name"] / VOLUMES
        step = space[1] * space[2] * self.dtype.itemsize  # bytes of a slice
        first = self._headers[shard] + (position * channels * space[0] + start) * step
        maps = [
            np.memmap(path, self.dtype, "r", first + channel * space[0] * step, (stop - start, *space[1:]))
            for channel in range(channels)
        ]
        if hasattr(mmap, "MADV_WILLNEED"):  # fetch at once, not page by page: 8 ms became 4 for 2 MB from a cold disk
            for stored in maps:
                stored.base.madvise(mmap.MADV_WILLNEED)
        return maps

    def check(self):
        """Read every byte and compare checksums; DataError names the first damaged shard and how to mend it."""
        for shard in self.shards:
            path = self.folder / shard["name"] / VOLUMES
            if not path.is_file() or digest(path) != shard["blake2b"]:
                raise DataError(f"{path}: is damaged (its checksum differs); {self._remedy(shard)}")
