"""Killed, full, read-only, two at once, and files that pretend: nothing is lost, nothing half-written gets a final name.

The cache's own faults are in test_volume_cache.py, the downloader's in test_download.py, the trainer's in test_pix2pix.py.
"""

import ast
import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file

from medsynth_lib.data.simulation.dataset import simulated_dataset, simulated_thoraxes
from medsynth_lib.experiments import trained_models as artefacts
from medsynth_lib.files import DataError
from medsynth_lib.settings import Pix2PixSettings
from medsynth_lib.training.checkpoint import load_checkpoint

REPO = Path(__file__).parents[1]
COUNTS = dict(train=5, test=1)
SCRIPT = """
import resource, sys
from medsynth_lib.data.simulation.dataset import simulated_dataset, simulated_thoraxes
kind, folder, limit, jobs = sys.argv[1:]
if int(limit):  # no file may grow beyond it, as if the disk ended there
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
counts = dict(train=5, test=1)
if kind == "chests":
    simulated_thoraxes(counts, (40, 40, 40), folder=folder, jobs=int(jobs))
else:
    simulated_dataset(counts, (24, 24, 20), 8.0, folder=folder, jobs=int(jobs))
"""


def child(kind, folder, limit=0, jobs=1):
    command = [sys.executable, "-c", SCRIPT, kind, str(folder), str(limit), str(jobs)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def make(kind, folder):
    if kind == "chests":
        return simulated_thoraxes(COUNTS, (40, 40, 40), folder=folder)
    return simulated_dataset(COUNTS, (24, 24, 20), 8.0, folder=folder)


def content(folder):
    """Every file under its name: images as arrays (gzip headers hold the time), texts as they are."""
    held = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):  # what a killed writer left
            image = name.endswith(".nii.gz")
            held[name] = np.asarray(nib.load(path).dataobj).tobytes() if image else path.read_bytes()
    return held


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    for kind in ("chests", "brains"):
        make(kind, folder / kind)
    return {kind: content(folder / kind) for kind in ("chests", "brains")}


def wait_for(condition, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("kind", ["chests", "brains"])
def test_kill_9_during_simulation_then_the_same_data_set(kind, jobs, tmp_path, undisturbed):
    process = child(kind, tmp_path / "data", jobs=jobs)
    try:
        wait_for(lambda: len(list(tmp_path.glob("data/**/truth.json"))) >= 2 or process.poll() is not None)
        workers = psutil.Process(process.pid).children()
    finally:
        process.kill()  # SIGKILL
        process.wait()
    assert process.returncode == -signal.SIGKILL  # it did not end by itself
    wait_for(lambda: not any(map(alive, workers)))  # orphans end, too
    assert len(workers) == (0 if jobs == 1 else jobs)
    assert not (tmp_path / "data" / "manifest.csv").exists()  # it would say that all is there
    make(kind, tmp_path / "data")
    assert content(tmp_path / "data") == undisturbed[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chests", "brains"])
def test_disk_full_during_simulation(kind, tmp_path, undisturbed):
    process = child(kind, tmp_path / "data", limit=2000)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "DataError" in error and "free disk space" in error
    assert not list(tmp_path.rglob("*.nii.gz"))
    make(kind, tmp_path / "data")
    assert content(tmp_path / "data") == undisturbed[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chests", "brains"])
def test_two_simulations_of_one_data_set_at_once(kind, tmp_path, undisturbed):
    both = [child(kind, tmp_path / "data") for _ in range(2)]
    for process in both:
        assert process.communicate(timeout=120)[1] == "" and process.returncode == 0
    assert content(tmp_path / "data") == undisturbed[kind]
    assert not [p for p in (tmp_path / "data").rglob(".*")]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_work_that_is_killed_at_random_moments_ends_with_the_same_files(tmp_path):
    """Six kills, or a hundred with MEDSYNTH_SOAK=1, over simulation, cache, training and batch run."""
    kills = 100 if os.environ.get("MEDSYNTH_SOAK") == "1" else 6
    command = [sys.executable, str(REPO / "tests" / "soak.py"), str(tmp_path), str(kills)]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "MEDSYNTH_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    print(done.stdout)
    assert sum(row["kills"] for row in rows.values()) >= kills
    assert all(row["kills"] and row["finished_and_equal"] and row["files"] for row in rows.values())


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="choose a writable folder"):
        make("chests", tmp_path / "data")


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


@pytest.fixture
def artefact(tmp_path):
    """A saved artefact of a tiny generator."""
    settings = Pix2PixSettings(width=8, loss="l1", steps=1, validate_every=1)
    folder = tmp_path / "artefact"
    algorithm = artefacts.ALGORITHMS["pix2pix"].build(settings)
    folder.mkdir()
    (folder / "history.csv").write_text("step,tune_l1\n1,0.1\n")
    artefacts.save(folder, algorithm, artefacts.Contract(), dict(device="CPU"))
    artefacts.load(folder, "cached")
    return folder


def test_a_pickle_in_place_of_weights_is_refused_and_not_run(artefact, tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    for write in (lambda p: p.write_bytes(pickle.dumps(Bomb())), lambda p: torch.save(Bomb(), p)):
        write(artefact / "weights.safetensors")
        with pytest.raises(ValueError, match="damaged artefact"):
            artefacts.load(artefact, "cached")
        with pytest.raises(ValueError, match="not a checkpoint"):
            load_checkpoint(artefact / "weights.safetensors", {}, {})
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_truncated_weights_are_named(artefact, keep):
    path = artefact / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"{artefact}: damaged artefact.*delete the folder"):
        artefacts.load(artefact, "cached")


def test_weights_of_another_network_are_named(artefact):
    save_file({"generator/other": torch.zeros(2)}, artefact / "weights.safetensors")
    with pytest.raises(ValueError, match="damaged artefact"):
        artefacts.load(artefact, "cached")


@pytest.mark.parametrize("name", ["recipe.yaml", "contract.yaml", "environment.json", "history.csv"])
def test_damaged_texts_are_named(artefact, name):
    (artefact / name).write_bytes(b"\xff\xfe [")
    with pytest.raises(ValueError, match="damaged artefact"):
        artefacts.load(artefact, "cached")


def test_another_version_is_another_artefact(monkeypatch, tmp_path):
    """Weights of an older algorithm are not found under the new key, so they are trained anew and never mistaken."""
    from medsynth_lib.data.preparation.contract import Contract
    from medsynth_lib.experiments.lesson_data import volumes

    manifest = simulated_dataset(dict(train=1, tune=1), (24, 24, 20), 8.0, sites=("A",), folder=tmp_path)
    train, tune = (volumes(manifest, Contract(), "SIMA", split) for split in ("train", "tune"))
    settings = Pix2PixSettings(steps=1)
    now = artefacts.artefact_key(settings, train, tune)
    kind = artefacts.ALGORITHMS["pix2pix"]
    monkeypatch.setitem(artefacts.ALGORITHMS, "pix2pix", dataclasses.replace(kind, version=kind.version + 1))
    assert artefacts.artefact_key(settings, train, tune) != now


def sources():
    """(name, Python source) of the library, the scripts and the notebooks."""
    for folder in ("medsynth_lib", "data_download", "benchmarks"):
        for path in sorted((REPO / folder).rglob("*.py")):
            yield path.relative_to(REPO).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted((REPO / "notebooks").glob("*.ipynb")):
        cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        yield path.name, "\n".join(cells)


FORBIDDEN = {
    "eval",
    "exec",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "joblib.load",
    "pd.read_pickle",
    "os.system",
}


@pytest.mark.slow
def test_nothing_loads_a_pickle_or_runs_text():
    for name, text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert not modules & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}, f"{name}:{node.lineno}"
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                safe = called == "torch.load" and "weights_only=True" in ast.unparse(node)  # tensors alone
                assert safe or called not in FORBIDDEN, f"{name}:{node.lineno}: {called}"
                assert "allow_pickle=True" not in ast.unparse(node), f"{name}:{node.lineno}"


def test_the_static_check_sees_what_it_should():
    tree = ast.parse("import torch\ntorch.load('x')")
    assert any(isinstance(n, ast.Call) and ast.unparse(n.func) in FORBIDDEN for n in ast.walk(tree))
