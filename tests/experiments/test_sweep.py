"""Sweeps: a cell is run once, kept atomically, keyed by what it uses, and merged; shares of a gap."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsynth_lib.experiments import sweep
from medsynth_lib.experiments.adaptation import study as uda
from medsynth_lib.files import DataError
from medsynth_lib.settings import load_settings, notebooks_folder


def cheap_cells(done):
    """(module, name, function) to put in the place of what costs time; every cell that is run is added to ``done``."""

    def run_cell(study, method):
        done.append(method)
        if method == "fails":
            raise RuntimeError("no")
        subjects = pd.DataFrame(dict(subject=["30000", "30001"], psnr_t=[20.0, 21.0]))
        about = dict(method=method, source=study.source, target=study.target, seed=study.seed, seconds=1.0)
        return subjects.assign(**about)

    return ((uda, "run_cell", run_cell), (sweep, "lesson_manifest", lambda lesson: None),
            (sweep, "lesson_contract", lambda lesson, frame: None))  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A cache of its own, cells that cost nothing, and the list of the cells that were run."""
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path))
    done = []
    for replaced in cheap_cells(done):
        monkeypatch.setattr(*replaced)
    return done


def test_cells_run_once_and_a_failure_loses_nothing(runs):
    with pytest.raises(RuntimeError):
        sweep.run_group("quick", "SIMA", "SIMB", 0, ["one", "fails", "two"])
    assert runs == ["one", "fails"]
    assert sweep.run_group("quick", "SIMA", "SIMB", 0, ["one", "two"]) == 1 and runs == ["one", "fails", "two"]
    assert sweep.run_group("quick", "SIMA", "SIMB", 0, ["one", "two"]) == 0
    assert sweep.run_group("quick", "SIMA", "SIMB", 1, ["one"]) == 1  # another seed


def test_a_killed_sweep_goes_on_without_repeating_or_believing_half_a_cell(runs, tmp_path, monkeypatch):
    """SIGKILL while the third of four tables is half written, as a power cut would; then the same sweep again."""
    monkeypatch.setattr(sweep, "notebooks_folder", lambda: tmp_path)
    group, settings, started = ("SIMA", "SIMB", 0), load_settings("04", "quick"), tmp_path / "started"
    methods = ["no adaptation", "continued training", "inputs matched", "inputs Nyul"]
    paths = [sweep.cell_path(settings, m, *group) for m in methods]
    worker = subprocess.Popen([sys.executable, Path(__file__).with_name("sweep_worker.py"), started, *methods])
    try:
        while not started.exists():
            assert worker.poll() is None, "the worker ended before it was killed"
            time.sleep(0.05)
    finally:
        worker.kill()
        worker.wait()

    assert [p.exists() for p in paths] == [True, True, False, False]
    halves = set(paths[0].parent.iterdir()) - set(paths)
    assert [p.read_text() for p in halves] == ["subject,psnr_t,met"]  # it was killed in the middle
    finished = [p.read_bytes() for p in paths[:2]]
    assert sorted(sweep.merge(settings, "quick")["method"].unique()) == sorted(methods[:2])
    assert sweep.run_group("quick", *group, methods) == 2 and runs == methods[2:]
    assert [p.read_bytes() for p in paths[:2]] == finished
    table = sweep.merge(settings, "quick")
    assert (table["method"].value_counts()[methods] == 2).all() and len(table) == 8


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


def test_the_control_of_variant_paper_differs_in_its_loss_alone():
    """Same variant, rates and pairing (which sets the order of source subjects): a control that draws others would not be one."""

    class Recipes:
        source_t1 = None

        def vae(self, **changes):
            return None, {}

        def adapted(self, latent=None, **changes):
            return latent is not None, changes

    (has_loss, paper), (none, control) = (
        uda.METHODS[m](Recipes()) for m in ("s-VAE, paper profile", "continued training at the paper's rate, two updates")
    )
    assert has_loss and not none and paper.pop("rho") > 0 and paper == control


def test_gap_closed_is_seed_by_seed():
    rows = [("continued training", 20, 21), ("supervised, n = 10", 22, 25), ("mine", 21, 25)]
    table = pd.DataFrame([dict(method=m, seed=k, subject=s, psnr_t=v + d) for m, *vs in rows
                          for k, v in enumerate(vs) for s, d in (("a", -1.0), ("b", 1.0))])  # fmt: skip
    closed = sweep.gap_closed(sweep.per_seed(table))
    assert np.allclose(closed.loc["mine"], [0.5, 1.0]) and (closed.loc["continued training"] == 0).all()


def test_the_committed_sweep_is_whole_where_it_claims_to_be():
    """Every planned cell is there under today's settings, with all test subjects and scores, steps, seconds and device."""
    table, settings = sweep.load(), load_settings("04", "lesson")
    planned = {(m, *key) for key, methods in sweep.cells(settings).items() for m in methods}
    assert planned == set(sweep.committed(settings)) == set(table.groupby(["method", "source", "target", "seed"]).groups)
    assert len(planned) == 3 * (42 + 33 + 33)  # seeds; Fig. 4b's nine rows from A to B alone
    counts = table.groupby(["method", "source", "target", "seed"])["subject"].nunique()
    assert (counts == settings.counts["test"]).all()
    scores = ["psnr_t", "psnr_s", "ssim_t", "nmi_t", "dice", "dice_wt", "dice_tc", "dice_et", "wt_ratio", "lesion_contrast"]
    assert table[["steps", "seconds", "device", "date", *scores]].notna().all().all()
    assert (notebooks_folder() / sweep.RESULTS).stat().st_size < 2_000_000
