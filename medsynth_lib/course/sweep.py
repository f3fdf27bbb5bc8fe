"""Sweeps: tables too long for a notebook, as small cells that are run once, anywhere, and merged into one committed file.

A cell is one method on one direction with one seed; its table is a CSV in the cache, written at once when it is done. So a sweep
can be stopped at any time and goes on, and several machines can share it (``--part 1/4``). A cell that was not run is absent,
and the notebook says 'not run'.
"""

import hashlib
import itertools
import os
import platform
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace

import pandas as pd
import torch

from medsynth_lib.course import uda
from medsynth_lib.course.data import lesson_contract, lesson_manifest
from medsynth_lib.course.profiles import load_settings, notebooks_folder
from medsynth_lib.files import atomic, cache_folder
from medsynth_lib.training.adaptation import VERSION

RESULTS = "sweeps/uda.csv"  # in the notebook folder


def cells_folder(settings):
    """Where the cells of these settings are; its name changes with the settings and with VERSION, so that nothing is mixed."""
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    return cache_folder("sweeps", f"uda-v{VERSION}-{key}")


def cell_path(settings, method, source, target, seed):
    """CSV of one cell."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{method}-{source}-{target}-{seed}")
    return cells_folder(settings) / f"{name}.csv"


def cells(settings, only="", seeds=None):
    """(source, target, seed) -> methods, in the order of running; ``only``: part of a method's name."""
    groups = itertools.product(seeds or settings.sweep_seeds, settings.sweep_directions)
    methods = [m for m in uda.METHODS if only.lower() in m.lower()]
    return {(f"SIM{d[0]}", f"SIM{d[1]}", seed): methods for seed, d in groups}


def run_group(profile, source, target, seed, methods):
    """Run the cells of one direction and seed that are not there yet; returns how many were run."""
    settings = load_settings("04", profile)
    paths = {m: cell_path(settings, m, source, target, seed) for m in methods}
    todo = [m for m in methods if not paths[m].exists()]
    if not todo:
        return 0
    torch.set_num_threads(int(os.environ.get("MEDSYNTH_THREADS", 1)))
    lesson = SimpleNamespace(settings=settings, data_dir=None, seed=seed, notebook="04")
    frame = lesson_manifest(lesson)
    study = uda.Study(frame, lesson_contract(lesson, frame), settings, source, target, seed)
    for method in todo:
        table = uda.run_cell(study, method)
        table = table.assign(device=device_name(), date=datetime.now(UTC).date().isoformat())
        with atomic(paths[method]) as temporary:
            table.to_csv(temporary, index=False, float_format="%.5g")
        print(
            f"{source} -> {target}, seed {seed}: {method}: {table['psnr_t'].mean():.2f} dB, {table['seconds'][0]} s",
            flush=True,
        )
    return len(todo)


def device_name():
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}"


def merge(settings):
    """Put all cells of these settings into the one table that the notebook reads; returns it."""
    paths = sorted(cells_folder(settings).glob("[!.]*.csv"))
    table = pd.concat([pd.read_csv(p, dtype={"subject": str}) for p in paths], ignore_index=True)
    table = table.sort_values(["source", "target", "seed", "method", "subject"])
    path = notebooks_folder() / RESULTS
    path.parent.mkdir(exist_ok=True)
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False)
    return table


def load():
    """The committed table of the sweep, one row a method, direction, seed and test subject."""
    return pd.read_csv(notebooks_folder() / RESULTS, dtype={"subject": str})


def main(arguments):
    """Command `sweep`: run what is missing, then merge; 0, or 130 after Ctrl-C (what is done stays)."""
    settings = load_settings("04", arguments.profile)
    groups = list(cells(settings, arguments.only, [int(s) for s in arguments.seeds.split(",") if s]).items())
    part, parts = map(int, arguments.part.split("/"))
    groups = [(arguments.profile, *key, methods) for key, methods in groups[part - 1 :: parts]]
    try:
        with ProcessPoolExecutor(arguments.jobs) as pool:
            done = sum(pool.map(run_group, *zip(*groups, strict=True)))
    except KeyboardInterrupt:
        print("stopped; finished cells are kept, the same command goes on", file=sys.stderr)
        return 130
    print(f"{done} cells run; {len(merge(settings))} rows in {notebooks_folder() / RESULTS}")
    return 0
