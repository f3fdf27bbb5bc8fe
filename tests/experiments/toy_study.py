"""A study whose cells cost nothing, for the tests of the sweep."""

from functools import partial

import pandas as pd

from medsynth_lib.experiments.sweep import Cell, Group, Sweep

DONE = []  # names of the cells that were run in this process
METHODS = ("one", "two", "three", "four")


def run_cell(shared, name):
    DONE.append(name)
    if name == "fails":
        raise RuntimeError("no")
    return pd.DataFrame(dict(subject=["00300", "00301"], score=[20.0, 21.123456], method=name, seed=shared))


def groups(profile, methods=METHODS, key="0123abcd"):
    """A group a seed; profile "other" has other settings."""
    key = "99999999" if profile == "other" else key
    return [group(seed, methods, key) for seed in (0, 1)]


def group(seed, methods, key="0123abcd"):
    cells = [Cell(f"{name}, seed {seed}", f"{key}{seed}{name}", partial(run_cell, name=name)) for name in methods]
    return Group(partial(int, seed), cells)


def arranged(table):
    return table.sort_values(["seed", "method", "subject"])


SWEEP = Sweep("toy", groups, arranged)
