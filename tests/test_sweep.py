"""Sweeps: a cell is run once, kept atomically, keyed by what it uses, and merged; shares of a gap."""

import numpy as np
import pandas as pd
import pytest

from medsynth_lib.course import sweep, uda
from medsynth_lib.course.profiles import load_settings, notebooks_folder
from medsynth_lib.files import DataError


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A cache of its own, cells that cost nothing, and the list of the cells that were run."""
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path))
    done = []

    def run_cell(study, method):
        done.append(method)
        if method == "fails":
            raise RuntimeError("no")
        subjects = pd.DataFrame(dict(subject=["30000", "30001"], psnr_t=[20.0, 21.0]))
        about = dict(method=method, source=study.source, target=study.target, seed=study.seed, seconds=1.0)
        return subjects.assign(**about)

    monkeypatch.setattr(uda, "run_cell", run_cell)
    monkeypatch.setattr(sweep, "lesson_manifest", lambda lesson: None)
    monkeypatch.setattr(sweep, "lesson_contract", lambda lesson, frame: None)
    return done


def test_cells_run_once_and_a_failure_loses_nothing(runs):
    with pytest.raises(RuntimeError):
        sweep.run_group("quick", "SIMA", "SIMB", 0, ["one", "fails", "two"])
    assert runs == ["one", "fails"]
    assert sweep.run_group("quick", "SIMA", "SIMB", 0, ["one", "two"]) == 1 and runs == ["one", "fails", "two"]
    assert sweep.run_group("quick", "SIMA", "SIMB", 0, ["one", "two"]) == 0
    assert sweep.run_group("quick", "SIMA", "SIMB", 1, ["one"]) == 1  # another seed


def test_merging_takes_finished_cells_of_these_settings_only(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "notebooks_folder", lambda: tmp_path)
    settings = load_settings("04", "quick")
    assert sweep.results_file("quick") != sweep.results_file("lesson")  # a trial never overwrites the table
    with pytest.raises(DataError, match="no finished cell"):
        sweep.merge(settings, "lesson")
    sweep.run_group("quick", "SIMA", "SIMB", 0, ["no adaptation", "continued training"])
    table = sweep.merge(settings, "lesson")
    assert sorted(table["method"].unique()) == ["continued training", "no adaptation"] and len(table) == 4
    pd.testing.assert_frame_equal(table.reset_index(drop=True), sweep.load())
    with pytest.raises(DataError):
        sweep.merge(load_settings("04", "quick", {"adapt_steps": 5}), "lesson")


def test_the_committed_table_counts_as_done_where_its_settings_are_these(runs, tmp_path, monkeypatch):
    """Another machine, an empty cache: what was committed is neither run again nor lost, and a new cell joins it."""
    monkeypatch.setattr(sweep, "notebooks_folder", lambda: tmp_path)
    group, settings = ("SIMA", "SIMB", 0), load_settings("04", "quick")
    sweep.run_group("quick", *group, ["no adaptation"])
    sweep.merge(settings, "lesson")
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path / "empty"))
    assert sweep.run_group("quick", *group, ["no adaptation", "continued training"]) == 1
    assert len(sweep.merge(settings, "lesson")) == 4 and runs == ["no adaptation", "continued training"]
    other = load_settings("04", "quick", {"adapt_steps": 5})
    assert sweep.committed(settings) and not sweep.committed(other)


def test_a_cell_depends_on_what_it_uses():
    """The slice-VAE's recipe changes only rows with a VAE; the number of steps changes all; what is shown changes none."""
    plain = load_settings("04", "quick")
    vae = load_settings("04", "quick", {"svae": plain.svae | {"width": 32}})
    steps = load_settings("04", "quick", {"adapt_steps": 5})
    shown = load_settings("04", "quick", {"live": []})
    cell = ("SIMA", "SIMB", 0)
    for method, changes in (("s-VAE, KL(P||Q)", True), ("continued training", False)):
        path = sweep.cell_path(plain, method, *cell)
        assert (sweep.cell_path(vae, method, *cell) != path) == changes
        assert sweep.cell_path(steps, method, *cell) != path == sweep.cell_path(shown, method, *cell)
    names = [sweep.cell_path(plain, m, *cell).name for m in uda.METHODS]
    assert len(set(names)) == len(uda.METHODS)  # KL(P||Q) and KL(Q||P) differ after the signs are taken out


def test_gap_closed_is_seed_by_seed():
    rows = [("continued training", 20, 21), ("supervised, n = 10", 22, 25), ("mine", 21, 25)]
    table = pd.DataFrame([dict(method=m, seed=k, subject=s, psnr_t=v + d) for m, *vs in rows
                          for k, v in enumerate(vs) for s, d in (("a", -1.0), ("b", 1.0))])  # fmt: skip
    closed = sweep.gap_closed(sweep.per_seed(table))
    assert np.allclose(closed.loc["mine"], [0.5, 1.0]) and (closed.loc["continued training"] == 0).all()


def test_the_committed_sweep_is_whole_where_it_claims_to_be():
    """Every cell of the committed table has all test subjects, steps, seconds and device; methods are those of the course."""
    table = sweep.load()
    counts = table.groupby(["method", "source", "target", "seed"])["subject"].nunique()
    assert (counts == load_settings("04", "lesson").counts["test"]).all()
    assert set(table["method"]) <= set(uda.METHODS) and table[["steps", "seconds", "device", "date"]].notna().all().all()
    assert (notebooks_folder() / sweep.RESULTS).stat().st_size < 2_000_000
