"""Sweeps: a cell is run once, kept atomically, found again by its key, and merged with what is committed."""

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import toy_study

from medsynth_lib import cli
from medsynth_lib.experiments import sweep
from medsynth_lib.files import DataError

SWEEP = toy_study.SWEEP


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A cache and a notebook folder of its own, and the names of the cells that were run."""
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDSYNTH_NOTEBOOKS", str(tmp_path))
    monkeypatch.setitem(sweep.STUDIES, "toy", "toy_study")
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(toy_study, "DONE", [])
    return toy_study.DONE


def test_cells_run_once_and_a_failure_loses_nothing(runs):
    with pytest.raises(RuntimeError):
        SWEEP.run_group(toy_study.group(0, ["one", "fails", "two"]))
    assert runs == ["one", "fails"]
    assert SWEEP.run_group(toy_study.group(0, ["one", "two"])) == 1 and runs == ["one", "fails", "two"]
    assert SWEEP.run_group(toy_study.group(0, ["one", "two"])) == 0
    assert SWEEP.run_group(toy_study.group(1, ["one"])) == 1  # another seed


def test_what_cells_share_is_opened_only_for_missing_cells(runs):
    opened = []
    group = toy_study.group(0, ["one"])
    group = sweep.Group(lambda: opened.append(1) or 0, group.cells)
    assert SWEEP.run_group(group) == 1 and SWEEP.run_group(group) == 0
    assert opened == [1]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_without_repeating_or_believing_half_a_cell(runs, tmp_path):
    """SIGKILL while the third of four tables is half written, as a power cut would; then the same sweep again."""
    group, started = toy_study.group(0, toy_study.METHODS), tmp_path / "started"
    paths = [SWEEP.path(cell) for cell in group.cells]
    worker = subprocess.Popen([sys.executable, Path(__file__).with_name("sweep_worker.py"), started])
    try:
        while not started.exists():
            assert worker.poll() is None, "the worker ended before it was killed"
            time.sleep(0.05)
    finally:
        worker.kill()
        worker.wait()

    assert [p.exists() for p in paths] == [True, True, False, False]
    halves = set(paths[0].parent.iterdir()) - set(paths)
    assert [p.read_text() for p in halves] == ["subject,sco"]  # it was killed in the middle
    finished = [p.read_bytes() for p in paths[:2]]
    assert set(SWEEP.merge("quick")["method"]) == {"one", "two"}
    assert SWEEP.run_group(group) == 2 and runs == ["three", "four"]
    assert [p.read_bytes() for p in paths[:2]] == finished
    assert (SWEEP.merge("quick")["method"].value_counts()[list(toy_study.METHODS)] == 2).all()


def test_merging_takes_finished_cells_of_these_settings_only(runs):
    assert SWEEP.file("quick") != SWEEP.file("lesson")  # a trial never overwrites the table
    with pytest.raises(DataError, match="no finished cell"):
        SWEEP.merge("lesson")
    SWEEP.run_group(toy_study.group(0, ["two", "one"]))
    table = SWEEP.merge("lesson")
    assert table["method"].tolist() == ["one", "one", "two", "two"]  # arranged
    pd.testing.assert_frame_equal(table.reset_index(drop=True), sweep.load("toy"))
    with pytest.raises(DataError):
        SWEEP.merge("other")


def test_a_table_is_read_and_written_without_a_change(runs):
    """Numbers keep their digits, subjects their zeros, columns their places; so a merge shows only what is new."""
    SWEEP.run_group(toy_study.group(0, ["one"]))
    SWEEP.merge("lesson")
    path = sweep.committed_file("toy")
    columns = ["key", "score", *(c for c in sweep.load("toy") if c not in ("key", "score"))]
    sweep.load("toy")[columns].to_csv(path, index=False)
    before = path.read_text()
    assert "00300" in before and "21.123\n" not in before and "21.123," in before  # five digits that matter
    SWEEP.run_group(toy_study.group(1, ["one"]))
    SWEEP.merge("lesson")
    assert path.read_text().startswith(before)


def test_the_committed_table_counts_as_done_where_its_settings_are_these(runs, tmp_path, monkeypatch):
    """Another machine, an empty cache: what was committed is neither run again nor lost, and a new cell joins it."""
    SWEEP.run_group(toy_study.group(0, ["one"]))
    SWEEP.merge("lesson")
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path / "empty"))
    assert SWEEP.run_group(toy_study.group(0, ["one", "two"])) == 1
    assert len(SWEEP.merge("lesson")) == 4 and runs == ["one", "two"]
    assert len(SWEEP.missing(toy_study.groups("other")[0].cells)) == len(toy_study.METHODS)


def test_a_sweep_is_shared_by_part_and_by_name():
    groups = toy_study.groups("lesson")
    shares = [sweep.chosen(groups, part=f"{k}/3") for k in (1, 2, 3)]
    assert [cell.name for share in shares for group in share for cell in group.cells] == [
        cell.name for group in groups for cell in group.cells
    ]
    names = [cell.name for group in sweep.chosen(groups, only="T; one") for cell in group.cells]
    assert names == [f"{name}, seed {seed}" for seed in (0, 1) for name in ("one", "two", "three")]
    for part in ("0/2", "3/2", "1"):
        with pytest.raises(ValueError, match="I-th of N"):
            sweep.chosen(groups, part=part)


def test_the_command_runs_what_is_missing_and_merges(runs, capsys):
    assert sweep.run_sweep("toy", "quick", only="one") == 0
    assert runs == ["one", "one"] and "2 cells run; 4 rows" in capsys.readouterr().out
    assert sweep.run_sweep("toy", "quick", only="one", jobs=2) == 0
    assert runs == ["one", "one"] and "0 cells run; 4 rows" in capsys.readouterr().out


def test_ctrl_c_keeps_what_is_finished(runs, monkeypatch, capsys):
    def interrupted(shared, name):
        raise KeyboardInterrupt

    SWEEP.run_group(toy_study.group(0, ["one"]))
    monkeypatch.setattr(toy_study, "run_cell", interrupted)
    assert sweep.run_sweep("toy", "quick") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(SWEEP.missing(toy_study.groups("quick")[0].cells)) == 3


def test_a_request_that_makes_no_sense_is_refused_in_one_line(capsys):
    assert cli.main(["sweep", "slice-vae", "--part", "3/2"]) == 2
    assert capsys.readouterr().err == "error: part '3/2': write I/N for the I-th of N shares, such as 1/4\n"


@pytest.mark.slow
def test_every_study_states_its_cells():
    """By the names of the command line; no two cells of a study share a name or a key, so none is taken for another."""
    for study in ("adaptation", "slice-vae"):
        found = sweep.open_sweep(study)
        cells = [cell for group in found.groups("lesson") for cell in group.cells]
        assert len({cell.name for cell in cells}) == len({cell.key for cell in cells}) == len(cells) > 30
        assert len({found.path(cell) for cell in cells}) == len(cells)
