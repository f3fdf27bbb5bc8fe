"""The sweep of lesson 04: every row of the comparison, in every direction, with every seed."""

import itertools
from dataclasses import fields
from functools import partial
from types import SimpleNamespace

import pandas as pd

from medsynth_lib.data.simulation import protocol
from medsynth_lib.data.simulation.dataset import describe
from medsynth_lib.experiments import sweep
from medsynth_lib.experiments.adaptation import methods, runner
from medsynth_lib.experiments.adaptation.direction import Direction
from medsynth_lib.experiments.adaptation.study import Study, make_study
from medsynth_lib.experiments.lesson_data import lesson_contract, lesson_manifest
from medsynth_lib.experiments.sweep import Cell, Group, Sweep
from medsynth_lib.files import fingerprint
from medsynth_lib.settings import Lesson04Settings, load_settings
from medsynth_lib.training import adaptation, pix2pix, segmentation, svae

TABLE = "uda"  # notebooks/sweeps/uda.csv
VERSIONS = tuple(module.VERSION for module in (methods, adaptation, pix2pix, segmentation, svae, protocol))
UNUSED = {"live", "sites", "sweep_seeds", "sweep_directions"}  # settings that no cell depends on
OF_VAES = {"svae", "svae_slice", "vae3d"}  # settings that rows without a VAE do not depend on


def cell_key(settings: Lesson04Settings, method: str, source: str, target: str, seed: int) -> str:
    """Fingerprint the cell: `VERSIONS`, its subjects and every setting that it uses; 8 digits."""
    unused = UNUSED | (set() if "VAE" in method else OF_VAES)
    used = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in unused}
    subjects = describe(settings.shape, settings.spacing, tumour=True)
    return fingerprint(VERSIONS, subjects, used, method, source, target, seed, digits=8)


def groups(profile: str) -> list[Group]:
    """List the sweep's cells in the order of running: a group a direction and seed."""
    return groups_of(load_settings("04", profile))


def groups_of(settings: Lesson04Settings) -> list[Group]:
    """List the cells of a lesson's settings."""
    found = []
    for direction, seed in itertools.product(settings.sweep_directions, settings.sweep_seeds):
        source, target = (f"SIM{site}" for site in direction)
        cells = [make_cell(settings, method, source, target, seed) for method in methods.planned(source, target)]
        found.append(Group(partial(open_study, settings, source, target, seed), cells))
    return found


def make_cell(settings: Lesson04Settings, method: str, source: str, target: str, seed: int) -> Cell:
    """State one cell."""
    key = cell_key(settings, method, source, target, seed)
    return Cell(f"{method}, {source} to {target}, seed {seed}", key, partial(run_cell, method=method))


def run_cell(study: Study, method: str) -> pd.DataFrame:
    """Make and score one row of a study."""
    return runner.run_cell(study, method)


def open_study(settings: Lesson04Settings, source: str, target: str, seed: int) -> Study:
    """Open simulated subjects and the models trained on them."""
    lesson = SimpleNamespace(settings=settings, data_dir=None, seed=seed, notebook="04")
    manifest = lesson_manifest(lesson)
    return make_study(Direction(manifest, lesson_contract(lesson, manifest), source, target), settings, seed)


def arranged(table: pd.DataFrame) -> pd.DataFrame:
    """Sort the merged table by direction, seed, method and subject."""
    return table.sort_values(["source", "target", "seed", "method", "subject"])


def swept(settings: Lesson04Settings, method: str, source: str, target: str, seed: int) -> pd.DataFrame:
    """Read a cell's committed rows; none where the committed sweep has other settings."""
    table = sweep.load(TABLE)
    return table[table["key"] == cell_key(settings, method, source, target, seed)]


SWEEP = Sweep(TABLE, groups, arranged)
