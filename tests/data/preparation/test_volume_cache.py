"""The sharded cache: round trips within half a step, reads of nothing but what is asked for, builds that survive."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.data import DataLoader

from medsynth_lib.data.preparation import volume_cache as shards
from medsynth_lib.data.preparation.volume_cache import ShardedVolumes, build, dequantise, quantise
from medsynth_lib.files import DataError

SHAPE = (2, 8, 5, 6)


def volume(seed, shape=SHAPE):
    """Values from -1 to 1, both ends reached in every channel."""
    v = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    v[:, 0, 0, :2] = -1, 1
    return v


def make(seed, log=None, seconds=0.0):
    """An item of the tests; it notes in ``log`` that it was made, and takes its time."""
    if log:
        with open(log, "a") as file:
            file.write(f"{seed}\n")
    time.sleep(seconds)
    return volume(seed), dict(subject=f"S{seed:03d}", site="A", age=40.5 + seed)


def tasks(n, *more):
    return [(seed, *more) for seed in range(n)]


def contents(folder):
    """Relative path -> bytes of every file of a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def refused(call, *words):
    """The call raises DataError, whose one line holds all words."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"


@pytest.fixture
def cache(tmp_path):
    """Seven items in shards of three, 8 bit."""
    return build(make, tasks(7), tmp_path / "cache", "key", items_per_shard=3)


# --- values ---


@pytest.mark.parametrize("bits", [8, 16])
@settings(deadline=None, max_examples=150)
@given(
    v=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=4, max_dims=4, max_side=4),
        elements=st.floats(-(2.0**120), 2.0**120, width=32),
    )
)
def test_error_is_at_most_half_a_step(bits, v):
    stored, low, high = quantise(v, bits)
    assert stored.dtype == f"<u{bits // 8}" and stored.shape == v.shape
    for q, a, b, channel in zip(stored, low, high, v, strict=True):
        back = dequantise(q, a, b, bits).astype(np.float64)
        scale = (b - a) / (2**bits - 1)
        rounding = 4 * np.finfo(np.float32).eps * max(abs(a), abs(b), b - a) + np.finfo(np.float32).tiny
        assert np.abs(back - channel).max() <= scale / 2 + rounding
        assert (back[channel == a] == a).all()
        np.testing.assert_allclose(back[channel == b], b, atol=rounding, rtol=0)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("low, high", [(-1, 1), (0, 1), (-1024, 3071)])
def test_the_error_reaches_half_a_step_and_the_ends_stay(bits, low, high):
    steps = np.linspace(low, high, 4 * (2**bits - 1) + 1, dtype=np.float32).reshape(1, 1, 1, -1)  # quarter steps
    stored, a, b = quantise(steps, bits)
    error = np.abs(dequantise(stored[0], a[0], b[0], bits) - steps[0])
    scale = (high - low) / (2**bits - 1)
    assert 0.49 * scale < error.max() <= 0.5 * scale + 4e-7 * max(abs(low), high)
    assert error[0, 0, 0] == 0 and error[0, 0, -1] <= 2e-7 * (high - low)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, -1.0, 3.7e5])
def test_constant_volumes_come_back_exactly(tmp_path, value):
    constant = torch.full(SHAPE, value)
    built = build(lambda: (constant, {}), [()], tmp_path / "c", "k")
    assert torch.equal(built[0]["x"], constant)


def test_each_item_and_channel_has_its_own_scale(tmp_path):
    gains = np.array([1e-3, 5e3], np.float32)[:, None, None, None]
    built = build(lambda i: (volume(i) * gains * (1 + i) + 7, {}), tasks(3), tmp_path / "c", "k", items_per_shard=2)
    for i in range(3):
        error = (built[i]["x"] - torch.from_numpy(volume(i) * gains * (1 + i) + 7)).abs().amax((1, 2, 3))
        assert (error <= torch.tensor([1e-3, 5e3]) * (1 + i) / 255 + 2e-6).all()


def test_items_come_with_their_metadata(cache, tmp_path):
    assert len(cache) == 7 and cache.shape == SHAPE and cache.bits == 8 and cache.key == "key"
    for i, item in enumerate(cache):  # ends by IndexError
        assert item["x"].shape == SHAPE and item["x"].dtype == torch.float32
        assert (item["x"] - torch.from_numpy(volume(i))).abs().max() <= 1 / 255 + 1e-6
        assert item | {"x": 0} == dict(x=0, subject=f"S{i:03d}", site="A", age=40.5 + i)
    assert i == 6
    assert torch.equal(cache[-1]["x"], cache[6]["x"]) and cache[-1]["subject"] == "S006"
    fine = build(make, tasks(7), tmp_path / "fine", "key", bits=16)
    assert (fine[5]["x"] - torch.from_numpy(volume(5))).abs().max() <= 1 / 65535 + 1e-6
    ShardedVolumes(fine.folder).check()


def test_metadata_comes_back_as_json_gives_it(tmp_path):
    metadata = {"ages": {2: 1.5, 10: None}, "sites": ("A", "é"), "fev1": float("nan")}
    back = build(lambda: (volume(0), metadata), [()], tmp_path / "c", "k").metadata[0]
    assert back["ages"] == {"2": 1.5, "10": None} and back["sites"] == ["A", "é"] and np.isnan(back["fev1"])


def test_tensors_are_taken_and_may_be_changed_without_harm(tmp_path):
    built = build(lambda i: (torch.from_numpy(volume(i)), {}), tasks(2), tmp_path / "c", "k")
    before = built[0]["x"].clone()
    built[0]["x"].zero_()
    assert torch.equal(built[0]["x"], before)


# --- sub-volumes ---


@settings(deadline=None, max_examples=60)
@given(data=st.data(), item=st.integers(0, 6))
def test_a_sub_volume_is_the_slice_of_the_whole(tmp_path_factory, data, item):
    folder = tmp_path_factory.getbasetemp() / "slices"
    built = build(make, tasks(7), folder, "key", items_per_shard=3)
    start = data.draw(st.integers(0, SHAPE[1] - 1))
    stop = data.draw(st.integers(start + 1, SHAPE[1]))
    assert torch.equal(built.read(item, start, stop), built[item]["x"][:, start:stop])


@pytest.mark.parametrize("start, stop", [(-1, 3), (0, 9), (4, 4), (5, 3)])
def test_slices_that_do_not_exist(cache, start, stop):
    with pytest.raises(IndexError, match="slices 0 to 8"):
        cache.read(0, start, stop)
    with pytest.raises(IndexError):
        cache.read(7)


def test_a_map_covers_the_slices_and_nothing_else(cache):
    _, x, y, z = SHAPE
    path = cache.folder / "0001" / "volumes.npy"
    header = path.stat().st_size - 3 * np.prod(SHAPE)
    first, second = cache.maps(4, 2, 5)  # item 1 of shard 1
    assert isinstance(first, np.memmap) and Path(first.filename) == path and not first.flags.writeable
    assert first.nbytes == second.nbytes == 3 * y * z
    assert first.offset == header + np.prod(SHAPE) + 2 * y * z
    assert second.offset == first.offset + x * y * z


def test_a_sub_volume_touches_no_other_bytes(tmp_path):
    """All that lies behind the sub-volume's page is cut off: a touch would kill this process (SIGBUS)."""
    big = (1, 64, 64, 64)
    built = build(lambda i: (volume(i, big), {}), tasks(2), tmp_path / "c", "k")
    path, whole = built.folder / "0000" / "volumes.npy", built.read(0)
    damaged = bytearray(path.read_bytes())
    offset, end = built.maps(0, 8, 16)[0].offset, built.maps(0, 8, 16)[0].offset + 8 * 64 * 64
    damaged[:offset] = bytes(offset)
    path.write_bytes(damaged[:end])
    assert torch.equal(built.read(0, 8, 16), whole[:, 8:16])
    with pytest.raises(ValueError):
        built.read(0, 16, 24)


# --- use ---


def test_loader_workers_read_the_same(cache):
    back = pickle.loads(pickle.dumps(cache))  # as a spawned worker gets it
    assert torch.equal(back.read(3, 2, 4), cache.read(3, 2, 4))
    batches = list(DataLoader(cache, batch_size=4, num_workers=2))
    assert [len(b["subject"]) for b in batches] == [4, 3] and batches[1]["site"] == ["A"] * 3
    for i in range(7):
        assert torch.equal(batches[i // 4]["x"][i % 4], cache[i]["x"])


def test_many_items_hold_no_files_open(tmp_path):
    built = build(make, tasks(40), tmp_path / "c", "k", items_per_shard=1)
    before = psutil.Process().num_fds()
    for i in range(40):
        built.read(i, 0, 2)
    assert psutil.Process().num_fds() <= before


# --- building ---


def test_a_finished_build_does_nothing(tmp_path):
    log = tmp_path / "log"
    build(make, tasks(5, str(log)), tmp_path / "c", "k", items_per_shard=2)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*")}
    build(make, tasks(5, str(log)), tmp_path / "c", "k", items_per_shard=2)
    assert log.read_text().split() == list("01234")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*")} == stamps


def test_several_processes_write_the_same_bytes(tmp_path):
    build(make, tasks(7), tmp_path / "one", "k", items_per_shard=2)
    build(make, tasks(7), tmp_path / "two", "k", items_per_shard=2, jobs=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(contents(tmp_path / "one")) == sorted(
        ["shards.json", *(f"{n:04d}/{name}" for n in range(4) for name in ("items.json", "volumes.npy"))]
    )


@pytest.mark.parametrize(
    "change",
    [dict(key="other"), dict(bits=16), dict(items_per_shard=2), dict(tasks=tasks(6))],
    ids=lambda c: next(iter(c)),
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_with_other_content_is_refused(cache, change, finished):
    if not finished:
        (cache.folder / "shards.json").unlink()
    before = contents(cache.folder)
    asked = dict(tasks=tasks(7), key="key", bits=8, items_per_shard=3) | change
    refused(lambda: build(make, folder=cache.folder, **asked), cache.folder, "other content", "another folder")
    assert contents(cache.folder) == before


def start_build(folder, n, jobs, log, seconds):
    """The same build in a process of its own."""
    code = (
        "from test_shards import build, make, tasks\n"
        f"build(make, tasks({n}, {str(log)!r}, {seconds}), {str(folder)!r}, 'k', items_per_shard=2, jobs={jobs})"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent, stderr=subprocess.PIPE)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_build_goes_on_to_the_same_folder(tmp_path, jobs):
    folder, log = tmp_path / "killed", tmp_path / "log"
    process = start_build(folder, 12, jobs, log, 0.1)
    wait_for(lambda: len(list(folder.glob("0*"))) >= 2)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(map(alive, workers)))  # orphans end, too
    assert len(workers) == (0 if jobs == 1 else jobs) and not (folder / "shards.json").exists()
    refused(lambda: ShardedVolumes(folder), folder / "shards.json", "no such file", "build")
    complete = {p.name for p in folder.glob("0*")}
    assert 2 <= len(complete) < 6
    log.unlink()
    build(make, tasks(12, str(log)), folder, "k", items_per_shard=2).check()
    assert len(log.read_text().split()) == 12 - 2 * len(complete)
    build(make, tasks(12), tmp_path / "whole", "k", items_per_shard=2)
    assert contents(folder) == contents(tmp_path / "whole")


def test_two_builds_at_once(tmp_path):
    log = tmp_path / "log"
    both = [start_build(tmp_path / "c", 8, jobs, log, 0.02) for jobs in (1, 2)]
    errors = [process.communicate(timeout=120)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    ShardedVolumes(tmp_path / "c").check()
    build(make, tasks(8), tmp_path / "alone", "k", items_per_shard=2)
    assert contents(tmp_path / "c") == contents(tmp_path / "alone")


def test_the_first_of_two_builds_stays_even_if_content_is_not_reproducible(tmp_path):
    """A shard and its facts appear by one rename, so no mixture of two builds can arise."""
    folder = tmp_path / "c"

    def rival(seed):
        if not (folder / "0000").exists():  # while ours is at work, another build finishes this shard
            build(make, [(seed + 50,)], folder, "k")
            (folder / "shards.json").unlink()
        return make(seed)

    built = build(rival, tasks(1), folder, "k")
    built.check()
    assert built.metadata[0]["subject"] == "S050"
    assert (built[0]["x"] - torch.from_numpy(volume(50))).abs().max() <= 1 / 255 + 1e-6


def test_a_shard_that_another_build_finished_meanwhile_is_not_made_again(tmp_path):
    folder, made = tmp_path / "c", []

    def ours(seed):
        if not made:
            build(make, tasks(4), folder, "k", items_per_shard=2)
        made.append(seed)
        return make(seed)

    build(ours, tasks(4), folder, "k", items_per_shard=2).check()
    assert made == [0, 1]


def test_leftovers_of_killed_builds_are_removed_but_not_those_of_living_ones(cache):
    names = [".0123abcd.0001", ".89abcdef.0002"]
    for name in names:
        shutil.copytree(cache.folder / "0000", cache.folder / name)
    old = time.time() - 2 * shards.STALE_SECONDS
    for path in (cache.folder / names[0], *(cache.folder / names[0]).iterdir()):
        os.utime(path, (old, old))
    os.utime(cache.folder / names[1], (old, old))  # but its files are being written
    (cache.folder / ".mine").touch()
    os.utime(cache.folder / ".mine", (old, old))
    build(make, tasks(7), cache.folder, "key", items_per_shard=3)
    assert sorted(p.name for p in cache.folder.glob(".*")) == [".89abcdef.0002", ".mine"]


def die(seed):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_killed_for_memory(tmp_path):
    refused(lambda: build(die, tasks(4), tmp_path / "c", "k", items_per_shard=1, jobs=2), tmp_path / "c", "fewer jobs")


def missing(seed):
    raise FileNotFoundError(errno.ENOENT, "No such file or directory", "scan.nii.gz")


@pytest.mark.parametrize("jobs", [1, 2])
def test_errors_of_make_are_not_blamed_on_the_disk(tmp_path, jobs):
    with pytest.raises(FileNotFoundError, match="scan.nii.gz"):
        build(missing, tasks(4), tmp_path / "c", "k", items_per_shard=2, jobs=jobs)
    assert not contents(tmp_path)


# --- faults of the disk ---


class FullDisk:
    """A file that takes a few bytes and then has no more space."""

    def __init__(self, path, mode):
        self.file = open(path, mode)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def write(self, data):
        self.file.write(bytes(data)[:200])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_disk_full(tmp_path, monkeypatch):
    def full_at_the_second_shard(path, mode):
        return FullDisk(path, mode) if "0001" in str(path) and mode == "wb" else open(path, mode)

    monkeypatch.setattr(shards, "open", full_at_the_second_shard, raising=False)
    refused(
        lambda: build(make, tasks(4), tmp_path / "c", "k", items_per_shard=2),
        tmp_path / "c" / "0001",
        "No space left",
        "free disk space",
    )
    assert sorted(contents(tmp_path / "c")) == ["0000/items.json", "0000/volumes.npy"]
    monkeypatch.undo()
    build(make, tasks(4), tmp_path / "c", "k", items_per_shard=2).check()


def test_disk_full_at_the_index(tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if Path(target).name == "shards.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    refused(lambda: build(make, tasks(2), tmp_path / "c", "k"), "shards.json", "No space left")
    assert sorted(contents(tmp_path / "c")) == ["0000/items.json", "0000/volumes.npy"]


def test_a_limit_on_file_size_is_a_real_half_write(tmp_path):
    """The kernel itself ends the write in the middle of volumes.npy."""
    code = (
        "import resource, sys\n"
        "from test_shards import DataError, build, make, tasks\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        "try:\n"
        f"    build(make, tasks(3), {str(tmp_path / 'c')!r}, 'k')\n"
        "except DataError as error:\n"
        "    sys.exit(f'refused: {error}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert "refused: " in done.stderr and "0000: cannot be written (File too large)" in done.stderr
    assert not contents(tmp_path)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "c").write_text("a file")
    refused(lambda: build(make, tasks(2), tmp_path / "c", "k"), tmp_path / "c", "cannot be written", "writable folder")
    refused(lambda: ShardedVolumes(tmp_path / "c"), tmp_path / "c", "cannot be read")
    assert (tmp_path / "c").read_text() == "a file"


# --- damage ---


def flip(path, position, value=255):
    raw = bytearray(path.read_bytes())
    raw[position] ^= value
    path.write_bytes(raw)


@pytest.mark.parametrize("position", [-1, -500, 200])
def test_a_flipped_bit_is_found_and_mended(cache, position):
    whole, path = contents(cache.folder), cache.folder / "0001" / "volumes.npy"
    flip(path, position, 1)
    opened = ShardedVolumes(cache.folder)  # opening is quick and cannot see it
    refused(opened.check, path, "checksum", f"delete the folder {cache.folder / '0001'} and build again")
    shutil.rmtree(cache.folder / "0001")
    refused(opened.check, path)
    refused(lambda: ShardedVolumes(cache.folder), path, "no such file", "build again")
    build(make, tasks(7), cache.folder, "key", items_per_shard=3).check()
    assert contents(cache.folder) == whole


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: b"", lambda raw: raw[:50]]
)
def test_a_truncated_shard_is_found_at_opening(cache, change):
    path = cache.folder / "0002" / "volumes.npy"
    path.write_bytes(change(path.read_bytes()))
    for use in (
        lambda: ShardedVolumes(cache.folder),
        lambda: build(make, tasks(7), cache.folder, "key", items_per_shard=3),
    ):
        refused(use, path, "bytes", f"delete the folder {cache.folder / '0002'} and build again")


def test_a_damaged_header_is_found_at_opening(cache):
    path = cache.folder / "0000" / "volumes.npy"
    intact = path.read_bytes()
    assert np.array_equal(np.load(path, allow_pickle=False)[1][0], cache.maps(1)[0])  # a plain .npy for others
    for position in range(len(intact) - 3 * int(np.prod(SHAPE))):
        flip(path, position, 1)
        refused(lambda: ShardedVolumes(cache.folder), path, "header is damaged", "build again")
        path.write_bytes(intact)
    ShardedVolumes(cache.folder).check()


@pytest.mark.parametrize("name", ["shards.json", "0000/items.json"])
def test_a_damaged_index_is_refused(cache, name):
    path = cache.folder / name
    intact = path.read_bytes()
    (cache.folder / "shards.json").rename(cache.folder / "aside")
    rng = np.random.default_rng(0)
    for _ in range(400):
        raw = bytearray(intact)
        for position in rng.integers(0, len(raw), rng.integers(1, 4)):
            raw[position] = rng.integers(0, 256)
        path.write_bytes(raw)
        try:
            same = shards.read_sealed(path)
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert shards.sealed(same) == intact.decode()  # only white space was hit, or nothing changed
    for raw in (b"", b"null", b"[]", b"{}", b'"text"', intact[: len(intact) // 2], b"\xff\xfe" + intact):
        path.write_bytes(raw)
        refused(lambda: shards.read_sealed(path), path, "build again")


def test_a_lost_index_is_gathered_again_without_making_anything(cache, tmp_path):
    whole = contents(cache.folder)
    flip(cache.folder / "shards.json", 100)
    refused(lambda: ShardedVolumes(cache.folder), "shards.json", "damaged", "delete", "build again")
    (cache.folder / "shards.json").unlink()
    build(missing, tasks(7), cache.folder, "key", items_per_shard=3).check()  # `missing` would raise
    assert contents(cache.folder) == whole


def test_another_format_is_refused(cache, monkeypatch):
    monkeypatch.setattr(shards, "FORMAT", shards.FORMAT + 1)
    refused(lambda: ShardedVolumes(cache.folder), "shards.json", "format 1", "format 2", "build again")
    refused(lambda: build(make, tasks(7), cache.folder, "key", items_per_shard=3), "format 1", "format 2")


def test_the_index_is_plain_json(cache):
    index = json.loads((cache.folder / "shards.json").read_text())
    assert index["shape"] == list(SHAPE) and index["bits"] == 8 and index["number"] == 7
    assert [(s["name"], s["first"], s["stop"]) for s in index["shards"]] == [
        ("0000", 0, 3),
        ("0001", 3, 6),
        ("0002", 6, 7),
    ]
    np.testing.assert_array_equal([i["low"] + i["high"] for i in index["items"]], [[-1, -1, 1, 1]] * 7)


# --- bad input ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e38])
def test_values_that_cannot_be_stored(tmp_path, value):
    def spoilt(i):
        v = volume(i)
        v[0, 1, 1, :3] = value if i == 1 else 0
        return v, {}

    refused(lambda: build(spoilt, tasks(2), tmp_path / "c", "k"), tmp_path / "c", "item 1", f"3 of {np.prod(SHAPE)}")
    assert not contents(tmp_path)


@pytest.mark.parametrize("jobs, per_shard", [(1, 4), (1, 1), (2, 1)])
def test_shapes_differ(tmp_path, jobs, per_shard):
    refused(
        lambda: build(of_shape, [((1, 4, 4, 4),), ((1, 4, 4, 5),)], tmp_path / "c", "k", 8, per_shard, jobs),
        "(1, 4, 4, 5)" if per_shard == 4 else "[1, 4, 4, 5]",
        "one shape",
    )
    assert not (tmp_path / "c" / "shards.json").exists()


def of_shape(shape):
    return np.ones(shape), {}


@pytest.mark.parametrize("shape", [(4, 4, 4), (1, 1, 4, 4, 4), (1, 0, 4, 4)])
def test_not_a_volume(tmp_path, shape):
    refused(lambda: build(of_shape, [(shape,)], tmp_path / "c", "k"), "item 0", shape, "(c, x, y, z)")


@pytest.mark.parametrize("metadata", [dict(x=1), dict(age=np.float32(4)), [1], {"a": {1, 2}}])
def test_metadata_that_cannot_be_stored(tmp_path, metadata):
    refused(lambda: build(lambda: (np.ones(SHAPE), metadata), [()], tmp_path / "c", "k"), "item 0", "metadata")


@pytest.mark.parametrize("wrong", [dict(bits=12), dict(items_per_shard=0), dict(tasks=[])])
def test_arguments_that_make_no_cache(tmp_path, wrong):
    refused(lambda: build(make, **dict(tasks=tasks(2), folder=tmp_path / "c", key="k") | wrong), tmp_path / "c", "give")
