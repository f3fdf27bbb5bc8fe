"""The volume cache: values within half a step and equal to the formula, builds that survive, damage that is named."""

import errno
import json
import os
import pickle
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

from medsynth_lib.data.preparation import volume_cache
from medsynth_lib.data.preparation.volume_cache import StoredVolumes, build, dequantise, quantise
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
    return volume(seed), dict(subject=f"S{seed:03d}", spacing=[1.5, 2.0, 0.1 + seed])


def tasks(n, *more):
    return [(seed, *more) for seed in range(n)]


def contents(folder):
    """Relative path -> bytes of every file of a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def files(folder):
    return sorted(folder.glob("*.safetensors"))


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
    return build(make, tasks(4), tmp_path / "cache", "key")


# --- values ---


@settings(deadline=None, max_examples=150)
@given(
    v=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=4, max_dims=4, max_side=4),
        elements=st.floats(-(2.0**120), 2.0**120, width=32),
    )
)
def test_error_is_at_most_half_a_step(v):
    stored = quantise(v)
    assert stored["stored"].dtype == np.uint16 and stored["stored"].shape == v.shape
    for back, a, b, channel in zip(dequantise(**stored), stored["low"], stored["high"], v, strict=True):
        scale = (b - a) / (2**16 - 1)
        rounding = 4 * np.finfo(np.float32).eps * max(abs(a), abs(b), b - a) + np.finfo(np.float32).tiny
        assert np.abs(back.astype(np.float64) - channel).max() <= scale / 2 + rounding
        assert (back[channel == a] == a).all()
        np.testing.assert_allclose(back[channel == b], b, atol=rounding, rtol=0)


def test_values_come_back_by_the_formula_to_the_bit(cache):
    """low + q scale in float32: another rounding would be another data set."""
    for i, item in enumerate(cache):  # ends by IndexError
        for got, v in zip(item["x"].numpy(), volume(i), strict=True):
            low, high = float(v.min()), float(v.max())
            q = np.rint((v.astype(np.float64) - low) / (high - low) * 65535)
            expected = q.astype(np.float32) * np.float32((high - low) / 65535) + np.float32(low)
            assert got.dtype == np.float32 and np.array_equal(got, expected)
        assert item | {"x": 0} == dict(x=0, subject=f"S{i:03d}", spacing=[1.5, 2.0, 0.1 + i])
    assert i == 3 and len(cache) == 4 and torch.equal(cache[-1]["x"], cache[3]["x"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, -1.0, 3.7e5])
def test_constant_volumes_come_back_exactly(tmp_path, value):
    constant = torch.full(SHAPE, value)
    built = build(lambda: (constant, {}), [()], tmp_path / "c", "k")
    built[0]["x"].zero_()  # what is read may be changed without harm
    assert torch.equal(built[0]["x"], constant)


def test_loader_workers_read_the_same_and_nothing_stays_open(cache):
    back = pickle.loads(pickle.dumps(cache))  # as a spawned worker gets it
    before = psutil.Process().num_fds()
    expected = [cache[i]["x"] for i in range(4)]
    assert psutil.Process().num_fds() <= before
    for i, batch in enumerate(DataLoader(back, num_workers=2)):
        assert torch.equal(batch["x"][0], expected[i])


# --- building ---


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_finished_build_does_nothing_and_processes_write_the_same(tmp_path, jobs):
    log = tmp_path / "log"
    build(make, tasks(5, str(log)), tmp_path / "c", "k", jobs)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*")}
    build(make, tasks(5, str(log)), tmp_path / "c", "k", jobs)
    assert sorted(log.read_text().split()) == list("01234")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*")} == stamps
    build(make, tasks(5), tmp_path / "alone", "k")
    assert contents(tmp_path / "c") == contents(tmp_path / "alone")


@pytest.mark.parametrize("change", [dict(key="other"), dict(tasks=tasks(3))], ids=lambda c: next(iter(c)))
def test_a_folder_with_other_content_is_refused_and_its_leftovers_are_not_used(cache, change):
    before = contents(cache.folder)
    asked = dict(tasks=tasks(4), key="key") | change
    refused(lambda: build(make, folder=cache.folder, **asked), cache.folder, "other content", "another folder")
    assert contents(cache.folder) == before
    (cache.folder / "index.json").unlink()  # as a killed build of other content leaves it
    other = build(lambda seed: (-volume(seed), {}), folder=cache.folder, **asked)
    assert torch.equal(other[0]["x"], build(lambda: (-volume(0), {}), [()], cache.folder / "x", "k")[0]["x"])


def start_build(folder, n, jobs, log, seconds):
    """The same build in a process of its own."""
    code = (
        "from test_volume_cache import build, make, tasks\n"
        f"build(make, tasks({n}, {str(log)!r}, {seconds}), {str(folder)!r}, 'k', {jobs})"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_killed_build_goes_on_to_the_same_folder(tmp_path):
    folder, log = tmp_path / "killed", tmp_path / "log"
    process = start_build(folder, 12, 2, log, 0.2)
    end = time.monotonic() + 100
    while len(files(folder)) < 3:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    refused(lambda: StoredVolumes(folder), folder / "index.json", "No such file", "finish its build")
    time.sleep(2)  # orphans end
    complete = len(files(folder))
    assert 3 <= complete < 12
    log.unlink()
    build(make, tasks(12, str(log)), folder, "k")
    assert len(log.read_text().split()) == 12 - complete
    build(make, tasks(12), tmp_path / "whole", "k")
    assert {k: v for k, v in contents(folder).items() if k[0] != "."} == contents(tmp_path / "whole")


@pytest.mark.slow
def test_two_builds_at_once(tmp_path):
    both = [start_build(tmp_path / "c", 8, jobs, tmp_path / "log", 0.02) for jobs in (1, 2)]
    errors = [process.communicate(timeout=200)[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    build(make, tasks(8), tmp_path / "alone", "k")
    assert contents(tmp_path / "c") == contents(tmp_path / "alone")


def die(seed):
    os.kill(os.getpid(), signal.SIGKILL)


def missing(seed):
    raise FileNotFoundError(errno.ENOENT, "No such file or directory", "scan.nii.gz")


def test_a_killed_worker_and_errors_of_make_are_told_apart_from_the_disk(tmp_path):
    refused(lambda: build(die, tasks(4), tmp_path / "c", "k", jobs=2), tmp_path / "c", "fewer jobs")
    with pytest.raises(FileNotFoundError, match="scan.nii.gz"):
        build(missing, tasks(4), tmp_path / "c", "k")
    assert not contents(tmp_path)


# --- faults of the disk, damage, bad input ---


@pytest.mark.slow
def test_a_limit_on_file_size_is_a_real_half_write(tmp_path):
    """The kernel itself ends the write in the middle of a volume."""
    code = (
        "import resource, sys\n"
        "from test_volume_cache import DataError, build, make, tasks\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        "try:\n"
        f"    build(make, tasks(3), {str(tmp_path / 'c')!r}, 'k')\n"
        "except DataError as error:\n"
        "    sys.exit(f'refused: {error}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert "refused: " in done.stderr and "000000.safetensors: cannot be written" in done.stderr
    assert not contents(tmp_path)


@pytest.mark.parametrize("change", [lambda raw: raw[:-1], lambda raw: b"", lambda raw: raw + b"\0"])
def test_a_file_of_another_size_is_named_at_opening(cache, change):
    path = files(cache.folder)[2]
    path.write_bytes(change(path.read_bytes()))
    for use in (lambda: StoredVolumes(cache.folder), lambda: build(make, tasks(4), cache.folder, "key")):
        refused(use, path, "damaged", "delete it and build again")


@pytest.mark.parametrize("position", [0, 100, -1, -500])
def test_a_flipped_bit_is_named_at_reading_and_mended(cache, position):
    whole, path = contents(cache.folder), files(cache.folder)[1]
    raw = bytearray(path.read_bytes())
    raw[position] ^= 1
    path.write_bytes(raw)
    opened = StoredVolumes(cache.folder)
    opened[0]
    refused(lambda: opened[1], path, "damaged", "delete it and build again")
    files(cache.folder)[0].unlink()  # another one is missing: what is damaged is not taken for good
    refused(lambda: build(make, tasks(4), cache.folder, "key"), path, "damaged")
    path.unlink()
    refused(lambda: opened[1], path, "missing")
    refused(lambda: StoredVolumes(cache.folder), "missing", "build again")
    build(make, tasks(4), cache.folder, "key")
    assert contents(cache.folder) == whole


def test_a_damaged_index_is_named_and_gathered_again_without_making_anything(cache, monkeypatch):
    path, whole = cache.folder / "index.json", contents(cache.folder)
    intact = path.read_bytes()
    for raw in (
        b"",
        b"null",
        b"[]",
        b"{}",
        intact[: len(intact) // 2],
        b"\xff" + intact,
        intact.replace(b"key", b"kez"),
    ):
        path.write_bytes(raw)
        refused(lambda: StoredVolumes(cache.folder), path, "damaged", "delete it and build again")
    path.unlink()
    build(missing, tasks(4), cache.folder, "key")  # `missing` would raise
    assert contents(cache.folder) == whole
    monkeypatch.setattr(volume_cache, "FORMAT", volume_cache.FORMAT + 1)
    refused(lambda: StoredVolumes(cache.folder), path, f"format {volume_cache.FORMAT - 1}")


def test_nothing_is_unpickled(cache):
    assert all(json.loads(path.read_text()) for path in cache.folder.glob("*.json"))
    path = files(cache.folder)[0]
    path.write_bytes(pickle.dumps({"stored": volume(0)}).ljust(path.stat().st_size, b"\0"))
    refused(lambda: StoredVolumes(cache.folder)[0], path, "damaged")


@pytest.mark.parametrize(
    "bad", [np.full(SHAPE, np.nan), np.full(SHAPE, -np.inf), np.ones((4, 4, 4)), np.ones((1, 0, 4, 4))]
)
def test_a_volume_that_cannot_be_stored_is_named(tmp_path, bad):
    refused(
        lambda: build(lambda: (bad, {}), [()], tmp_path / "c", "k"),
        tmp_path / "c",
        "000000",
        bad.shape,
        "mend the scan",
    )
    assert not contents(tmp_path)


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "c").write_text("a file")
    refused(lambda: build(make, tasks(2), tmp_path / "c", "k"), tmp_path / "c", "cannot be written", "writable folder")
    assert (tmp_path / "c").read_text() == "a file"
