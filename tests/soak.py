"""Kill -9 at random moments, then go on: `python tests/soak.py FOLDER KILLS` prints what came of it as JSON.

Four kinds of work are killed in turn: simulation, volume cache, training, batch run. Work that was killed is started again in
the same folder, until it ends. Its files must then be those of work that nobody disturbed, to the bit.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import psutil
import torch
from safetensors.numpy import load_file

from medsynth_lib.course.run import run_notebooks
from medsynth_lib.data.preparation.contract import Contract
from medsynth_lib.data.preparation.cubes import CubeContract, Cubes
from medsynth_lib.data.simulation.dataset import simulated_dataset, simulated_thoraxes
from medsynth_lib.experiments.lesson_data import volumes
from medsynth_lib.experiments.trained_models import train_or_load
from medsynth_lib.settings import Pix2PixSettings

NOTEBOOK = """
import json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import soak
soak.simulate(Path(OUT_DIR) / "data", Path({inputs!r}))
soak.train(Path(OUT_DIR) / "model", Path({inputs!r}))
"""
SHARES = (0.3, 0.3, 0.3, 0.1)  # of the kills, a kind of work; a batch run starts processes, which takes long
NOT_COMPARED = ("environment.json", "summary.json", ".ipynb", ".html", ".txt", ".css", ".js")  # hold times


def simulate(folder: Path, inputs: Path) -> None:
    """Write six small brains."""
    simulated_dataset(dict(train=5, test=1), (24, 24, 20), 8.0, folder=folder)


def cache(folder: Path, inputs: Path) -> None:
    """Write the cubes of eight chests to a volume cache."""
    chests = simulated_thoraxes(dict(train=8), (64, 64, 64), folder=inputs / "chests")
    Cubes(chests, CubeContract("ct", 64)).on_disk(folder, "soak")


def train(folder: Path, inputs: Path) -> None:
    """Train a small pix2pix for twelve steps."""
    os.environ["MEDSYNTH_CACHE"] = str(folder)
    scans = simulated_dataset(dict(train=2, tune=1), (24, 24, 20), 8.0, sites=("A",), folder=inputs / "brains")
    contract = Contract(spacing=(8.0,) * 3, size=(24, 24, 16))
    pair = (volumes(scans, contract, "SIMA", split) for split in ("train", "tune"))
    train_or_load("soak", Pix2PixSettings(width=8, steps=12, validate_every=2), *pair)


def run(folder: Path, inputs: Path) -> None:
    """Execute a notebook that simulates and trains."""
    status = run_notebooks("lesson", out=folder, notebooks=inputs / "notebooks", jobs=1)
    if status:
        raise SystemExit(f"medsynth run gave {status}")


WORK: dict[str, Callable[[Path, Path], None]] = {
    "simulation": simulate, "cache": cache, "training": train, "batch run": run
}  # fmt: skip


def prepare_inputs(inputs: Path) -> None:
    """Write what the work reads: scans and a notebook."""
    (inputs / "notebooks").mkdir(parents=True)
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    )
    parameters = nbformat.v4.new_code_cell('PROFILE, OUT_DIR, DATA_DIR = "lesson", "", ""')
    parameters.metadata["tags"] = ["parameters"]
    code = NOTEBOOK.format(tests=str(Path(__file__).parent), inputs=str(inputs))
    book.cells = [parameters, nbformat.v4.new_code_cell(code)]
    nbformat.write(book, inputs / "notebooks" / "01_soak.ipynb")


def content(folder: Path) -> dict[str, bytes]:
    """Return every finished file under its name: its bytes, without the times that some hold."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") or part == "atlas" for part in name.split("/"))
        if not hidden and not name.endswith(NOT_COMPARED):
            found[name] = timeless(path)
    return found


def timeless(path: Path) -> bytes:
    """Return what a file holds besides times: voxels, tensors, a history without its column of seconds."""
    if path.name.endswith(".nii.gz"):
        return np.asarray(nib.load(path).dataobj).tobytes()
    if path.name == "checkpoint.safetensors":
        return b"".join(name.encode() + tensor.tobytes() for name, tensor in sorted(load_file(path).items()))
    if path.name == "history.csv":
        return pd.read_csv(path).drop(columns="seconds").to_csv().encode()
    return path.read_bytes()


def started(kind: str, folder: Path, inputs: Path) -> int:
    """Start work in a process of its own, as a fork: no time is lost on imports. Return its number."""
    number = os.fork()
    if number:
        return number
    with open(inputs / "log.txt", "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    status = 1
    try:
        torch.set_num_threads(1)
        WORK[kind](folder, inputs)
        status = 0
    finally:
        if status:
            import traceback

            traceback.print_exc()
        os._exit(status)


def finished(number: int, seconds: float) -> bool:
    """Wait for a process, at most so many seconds; kill it and all that it left. Return whether it ended by itself."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        gone, status = os.waitpid(number, os.WNOHANG)
        if gone:
            assert status == 0, f"work ended with status {status}"
            return True
        time.sleep(0.005)
    workers = psutil.Process(number).children(recursive=True)
    os.kill(number, signal.SIGKILL)
    _, status = os.waitpid(number, 0)
    orphans = psutil.wait_procs(workers, timeout=60)[1]
    assert not orphans, f"processes go on after their parent: {orphans}"
    return status == 0  # it ended just then


def torn(kind: str, folder: Path, truth: dict[str, bytes]) -> list[str]:
    """List the files under a final name that are not what they should be; a training's state may still change."""
    if kind not in ("simulation", "cache"):
        return []
    return [name for name, data in content(folder).items() if truth.get(name) != data]


def soak(kind: str, kills: int, folder: Path, inputs: Path, rng: random.Random) -> dict[str, Any]:
    """Kill one kind of work so often; compare the files each time that it ends."""
    began = time.monotonic()
    for name in ("first", "truth"):  # the first writes what all share, such as the atlas, and takes longer
        start = time.monotonic()
        assert finished(started(kind, folder / name, inputs), 600)
    truth, length = content(folder / "truth"), time.monotonic() - start
    count, complete, attempt = 0, 0, 0
    while count < kills or attempt:
        place = folder / f"{complete}"
        wait = rng.uniform(0, length) if count < kills else 600
        if finished(started(kind, place, inputs), wait):
            assert content(place) == truth, f"{kind}: {place} differs"
            complete, attempt = complete + 1, 0
        else:
            count, attempt = count + 1, attempt + 1
            assert not torn(kind, place, truth), f"{kind}: {torn(kind, place, truth)} after kill {count}"
    return dict(kills=count, finished_and_equal=complete, files=len(truth), seconds=round(time.monotonic() - began))


def main(folder: Path, kills: int) -> None:
    """Share the kills among the kinds of work, and print a row each."""
    inputs, rng = folder / "inputs", random.Random(0)
    prepare_inputs(inputs)
    rows = {}
    for k, kind in enumerate(WORK):
        share = max(1, round(kills * SHARES[k]))
        rows[kind] = soak(kind, share, folder / kind.replace(" ", "_"), inputs, rng)
        print(kind, rows[kind], file=sys.stderr, flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]))
