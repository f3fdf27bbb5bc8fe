"""Sweeps: tables too long for a notebook, as small cells that are run once, anywhere, and merged into one committed file.

A cell is one method on one direction with one seed; its table is a CSV in the cache, written at once when it is done. So a sweep
can be stopped at any time and goes on, and several machines can share it (``--part 1/4``): what the committed file holds of the
present settings counts as done, too. A cell that was not run is absent, and the notebook says 'not run'.
"""

import hashlib
import itertools
import json
import os
import platform
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace

import pandas as pd
import torch

from medsynth_lib.data.simulation import protocol
from medsynth_lib.experiments.adaptation import study as uda
from medsynth_lib.experiments.lesson_data import lesson_contract, lesson_manifest
from medsynth_lib.files import DataError, atomic, cache_folder
from medsynth_lib.settings import load_settings, notebooks_folder
from medsynth_lib.training import adaptation, pix2pix, segmentation, svae

RESULTS = "sweeps/uda.csv"  # in the notebook folder: profile lesson; other profiles are merged in the cache
VERSIONS = tuple(module.VERSION for module in (uda, adaptation, pix2pix, segmentation, svae, protocol))


def cell_key(settings, method):
    """Eight hexadecimal digits that change with VERSIONS and with every setting that the method uses: nothing is mixed."""
    unused = {"live", "sweep_seeds", "sweep_directions"} | (set() if "VAE" in method else {"svae", "svae_slice", "vae3d"})
    used = {k: v for k, v in settings.as_dict().items() if k not in unused}
    return hashlib.sha256(json.dumps([VERSIONS, used], sort_keys=True).encode()).hexdigest()[:8]


def cell_path(settings, method, source, target, seed):
    """CSV of one cell in the cache."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{method}-{source}-{target}-{seed}")
    return cache_folder("sweeps", "uda") / f"{name}-{cell_key(settings, method)}.csv"


def committed(settings):
    """The committed rows that were run with these settings, by cell: {(method, source, target, seed): table}."""
    if not (notebooks_folder() / RESULTS).exists():
        return {}
    groups = load().groupby(["method", "source", "target", "seed"])
    return {cell: rows for cell, rows in groups if (rows["key"] == cell_key(settings, cell[0])).all()}


def cells(settings, only=""):
    """(source, target, seed) -> methods, in the order of running; ``only``: comma-separated parts of methods' names."""
    parts = [part.strip().lower() for part in only.split(",")]
    keys = [(f"SIM{d[0]}", f"SIM{d[1]}", seed) for d, seed in itertools.product(settings.sweep_directions, settings.sweep_seeds)]
    return {key: [m for m in uda.planned(*key[:2]) if any(part in m.lower() for part in parts)] for key in keys}


def run_group(profile, source, target, seed, methods):
    """Run the cells of one direction and seed that are not there yet; returns how many were run."""
    settings = load_settings("04", profile)
    paths = {m: cell_path(settings, m, source, target, seed) for m in methods}
    done = committed(settings)
    todo = [m for m in methods if not paths[m].exists() and (m, source, target, seed) not in done]
    if not todo:
        return 0
    torch.set_num_threads(int(os.environ.get("MEDSYNTH_THREADS", 1)))
    lesson = SimpleNamespace(settings=settings, data_dir=None, seed=seed, notebook="04")
    frame = lesson_manifest(lesson)
    study = uda.Study(frame, lesson_contract(lesson, frame), settings, source, target, seed)
    for method in todo:
        table = uda.run_cell(study, method)
        about = dict(device=device_name(), date=datetime.now(UTC).date().isoformat(), key=cell_key(settings, method))
        table = table.assign(**about)
        with atomic(paths[method]) as temporary:
            table.to_csv(temporary, index=False, float_format="%.5g")
        print(
            f"{source} -> {target}, seed {seed}: {method}: {table['psnr_t'].mean():.2f} dB, {table['seconds'][0]} s",
            flush=True,
        )
    return len(todo)


def device_name():
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}"


def results_file(profile):
    """Where a profile's merged table is: only that of `lesson` is committed."""
    return notebooks_folder() / RESULTS if profile == "lesson" else cache_folder("sweeps") / f"uda-{profile}.csv"


def merge(settings, profile):
    """Put all finished cells of these settings into one table, for `lesson` the one that the notebook reads; returns it."""
    tables = committed(settings)
    for (source, target, seed), methods in cells(settings).items():
        for method in methods:
            path = cell_path(settings, method, source, target, seed)
            if path.exists():
                tables[method, source, target, seed] = pd.read_csv(path, dtype={"subject": str, "key": str})
    if not tables:
        raise DataError(f"no finished cell in {cache_folder('sweeps', 'uda')}; run the sweep first.")
    table = pd.concat(tables.values(), ignore_index=True)
    table = table.sort_values(["source", "target", "seed", "method", "subject"])
    path = results_file(profile)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False)
    return table


def load():
    """The committed table of the sweep, one row a method, direction, seed and test subject."""
    return pd.read_csv(notebooks_folder() / RESULTS, dtype={"subject": str, "key": str})


def per_seed(table):
    """Means over test subjects: one row a method and seed, of one direction's part of the table."""
    columns = [c for c in table.columns if pd.api.types.is_numeric_dtype(table[c]) and c not in ("seed", "steps")]
    return table.groupby(["method", "seed"])[columns].mean()


def gap_closed(means, column="psnr_t", low="continued training", high="supervised, n = 10"):
    """Share of the way from one method to another, a column a method's row: (seed by seed) (row - low) / (high - low)."""
    values = means[column].unstack("seed")
    return (values - values.loc[low]) / (values.loc[high] - values.loc[low])


def in_processes(run, cells, jobs):
    """Sum of what ``run`` returns for cells (tuples of its arguments), in several processes; None, with a word, after Ctrl-C."""
    try:
        with ProcessPoolExecutor(jobs) as pool:
            return sum(pool.map(run, *zip(*cells, strict=True)))
    except KeyboardInterrupt:
        print("stopped; finished cells are kept, the same command goes on", file=sys.stderr)
        return None


def main(arguments):
    """Command `sweep`: run what is missing, then merge; 0, or 130 after Ctrl-C (what is done stays)."""
    settings = load_settings("04", arguments.profile)
    groups = list(cells(settings, arguments.only).items())
    part, parts = map(int, arguments.part.split("/"))
    groups = [(arguments.profile, *key, methods) for key, methods in groups[part - 1 :: parts]]
    done = in_processes(run_group, groups, arguments.jobs)
    if done is None:
        return 130
    print(f"{done} cells run; {len(merge(settings, arguments.profile))} rows in {results_file(arguments.profile)}")
    return 0
