"""Sweeps: tables too long for a notebook, in small cells that are run once, anywhere, and merged into one committed file.

A study states its cells as a `Sweep`. The table of a finished cell is a CSV in the cache, written at once. So a sweep can
be stopped at any time and goes on, and several machines can share it (``--part 1/4``). What the committed file holds of the
present settings counts as finished, too.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from medsynth_lib import processes
from medsynth_lib.experiments.computer import device_name
from medsynth_lib.files import DataError, atomic, cache_folder
from medsynth_lib.settings import notebooks_folder

STUDIES = {  # name of a study on the command line -> module that holds its `SWEEP`
    "adaptation": "medsynth_lib.experiments.adaptation.cells",
    "slice-vae": "medsynth_lib.experiments.slice_vae",
    "rivals": "medsynth_lib.experiments.rivals",
    "detection": "medsynth_lib.experiments.detection",
}
TEXT = {"subject": str, "key": str}  # columns whose digits are no numbers


@dataclass(frozen=True)
class Cell:
    """One training or comparison, and the rows of the table that come of it."""

    name: str  # for people and for its file, such as "continued training, SIMA to SIMB, seed 0"
    key: str  # fingerprint of all that its rows depend on
    run: Callable[[Any], pd.DataFrame]  # makes its rows of what its group opened


@dataclass(frozen=True)
class Group:
    """Cells that one process runs one after the other, since they share what is loaded and trained for the first."""

    open: Callable[[], Any]  # makes what the cells share; not called where every cell is finished
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Sweep:
    """A study's cells and their table.

    Attributes:
        table: name of the table: notebooks/sweeps/TABLE.csv.
        groups: of a profile. What it returns is sent to other processes, so it is made of module functions and values.
        arranged: puts the merged rows in order.
    """

    table: str
    groups: Callable[[str], Sequence[Group]]
    arranged: Callable[[pd.DataFrame], pd.DataFrame]

    def path(self, cell: Cell) -> Path:
        """Name the file of a finished cell in the cache."""
        slug = re.sub(r"[^A-Za-z0-9]+", "-", cell.name)
        return cache_folder("sweeps", self.table) / f"{slug}-{cell.key}.csv"

    def file(self, profile: str) -> Path:
        """Name a profile's merged table: only that of profile lesson is committed."""
        if profile == "lesson":
            return committed_file(self.table)
        return cache_folder("sweeps") / f"{self.table}-{profile}.csv"

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return the cells that neither the cache nor the committed table holds."""
        committed = set(load(self.table)["key"])
        return [cell for cell in cells if cell.key not in committed and not self.path(cell).exists()]

    def run_group(self, group: Group) -> int:
        """Run the missing cells of a group, keep their rows in the cache and count them."""
        missing = self.missing(group.cells)
        if not missing:
            return 0
        torch.set_num_threads(int(os.environ.get("MEDSYNTH_THREADS", 1)))
        shared = group.open()
        for cell in missing:
            made = dict(device=device_name(), date=datetime.now(UTC).date().isoformat(), key=cell.key)
            rows = cell.run(shared).assign(**made)
            with atomic(self.path(cell)) as temporary:
                rows.to_csv(temporary, index=False, float_format="%.5g")
            print(f"{cell.name}: {len(rows)} row(s)", flush=True)
        return len(missing)

    def merge(self, profile: str) -> pd.DataFrame:
        """Write all finished cells of a profile into its table.

        Returns:
            The table.

        Raises:
            DataError: where no cell is finished; an earlier table stays.
        """
        committed = load(self.table)
        tables = [self.rows(cell, committed) for group in self.groups(profile) for cell in group.cells]
        tables = [table for table in tables if len(table)]
        if not tables:
            raise DataError(f"no finished cell in {cache_folder('sweeps', self.table)}; run the sweep first.")
        table = self.arranged(pd.concat(tables, ignore_index=True))
        order = dict.fromkeys([*(c for c in committed if c in table), *table])  # columns stay where they were
        with atomic(self.file(profile)) as temporary:
            table[list(order)].to_csv(temporary, index=False)
        return table[list(order)]

    def rows(self, cell: Cell, committed: pd.DataFrame) -> pd.DataFrame:
        """Read a cell's rows from the cache, else from the committed table; none if unfinished."""
        path = self.path(cell)
        return read(path) if path.exists() else committed[committed["key"] == cell.key]


def committed_file(table: str) -> Path:
    """Name the committed file of a table."""
    return notebooks_folder() / "sweeps" / f"{table}.csv"


def load(table: str) -> pd.DataFrame:
    """Read a committed table, such as "uda" or "svae"; without rows where there is none."""
    path = committed_file(table)
    return read(path) if path.exists() else pd.DataFrame(columns=["key"])


def read(path: Path) -> pd.DataFrame:
    """Read a table; subjects and keys are text."""
    return pd.read_csv(path, dtype=TEXT)


def open_sweep(study: str) -> Sweep:
    """Import a study of `STUDIES` and return its sweep."""
    return importlib.import_module(STUDIES[study]).SWEEP


def chosen(groups: Sequence[Group], only: str = "", part: str = "1/1") -> list[Group]:
    """Choose groups and cells to run.

    Args:
        groups: all of a study.
        only: parts of cells' names, separated by semicolons; empty for all cells.
        part: "I/N", the I-th of N shares of the groups.

    Raises:
        ValueError: for a part that is none, or where no cell has such a name.
    """
    share, shares = (int(n) if n.isdecimal() else 0 for n in (part + "/0").split("/")[:2])
    if not 1 <= share <= shares:
        raise ValueError(f"part {part!r}: write I/N for the I-th of N shares, such as 1/4")
    wanted = [text.strip().lower() for text in only.split(";")]
    named = [
        Group(group.open, [cell for cell in group.cells if any(text in cell.name.lower() for text in wanted)])
        for group in groups
    ]
    if not any(group.cells for group in named):
        raise ValueError(f"no cell has {only!r} in its name; such a name is {groups[0].cells[0].name!r}")
    return named[share - 1 :: shares]


def run_sweep(study: str, profile: str = "lesson", only: str = "", part: str = "1/1", jobs: int = 1) -> int:
    """Run what is missing of a study, then merge.

    Args:
        study: a key of `STUDIES`.
        profile: size of the study.
        only, part: as in `chosen`.
        jobs: processes, of one thread each unless MEDSYNTH_THREADS says otherwise.

    Returns:
        The exit status: 0, or 130 after Ctrl-C; finished cells stay.
    """
    sweep = open_sweep(study)
    tasks = [(sweep, group) for group in chosen(sweep.groups(profile), only, part)]
    folder = cache_folder("sweeps", sweep.table)
    try:
        done = sum(processes.run(Sweep.run_group, tasks, jobs, folder, what="sweep", unit="group"))
    except KeyboardInterrupt:
        print("stopped; finished cells stay, the same command goes on", file=sys.stderr)
        return 130
    print(f"{done} cells run; {len(sweep.merge(profile))} rows in {sweep.file(profile)}")
    return 0
