"""Lesson 08's tables: steps are accounted once, numbers read from the committed run are those that stand there."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from medsynth_lib.experiments import memory_study as study
from medsynth_lib.profiling.ledger import Training
from medsynth_lib.profiling.report import MIB, PARTS, Report


def report(peak, mean=0, **parts):
    """A Report of so many MiB, of which the running mean takes ``mean``."""
    table = pd.DataFrame(0.0, ["layer", "mean G^A.conv"], [*PARTS, "peak"])
    table.loc["mean G^A.conv", "parameters"] = mean * MIB
    table.loc["layer", ["activations", "peak"]] = (peak - mean) * MIB
    phases = pd.DataFrame({"peak": [1.0, 2.0]}, ["D", "G"])
    return Report(
        int(peak * MIB), dict.fromkeys(PARTS, 0) | {k: v * MIB for k, v in parts.items()}, phases, table, table
    )


def test_a_step_is_accounted_once_and_the_default_share_is_the_paper_s(monkeypatch):
    asked = []
    steps = study.Steps(batch=1, narrower=16)
    monkeypatch.setattr(steps, "training", lambda model, size, **changes: (model, size, changes))
    monkeypatch.setattr(study, "account", lambda make: asked.append(make()) or report(9))
    first = steps.report("HA-GAN", 32, sub_volume=1 / 8)
    assert steps.report("HA-GAN", 32) is first and asked == [("HA-GAN", 32, {})]
    steps.report("HA-GAN", 32, sub_volume=1 / 2)
    assert asked[1:] == [("HA-GAN", 32, {"sub_volume": 1 / 2})]


def test_widths_are_the_paper_s_divided():
    steps = study.Steps(batch=1, narrower=16)
    narrow = steps.build("HA-GAN", 32)
    assert narrow.settings.latent == 64 and narrow.settings.c == 2 and "mean G^A" in narrow.networks
    made = steps.training("WGAN", 32)
    assert set(made.networks) >= {"G", "D"} and made.inputs["x"].shape == (1, 1, 32, 32, 32)


def test_the_paper_s_step_has_no_running_mean():
    assert study.running_mean(report(9, mean=2)) == 2 and study.papers_peak(report(9, mean=2)) == 7


def test_the_peak_while_something_is_made_counts_what_is_used_and_what_is_new():
    old = torch.zeros(4 * MIB)  # 16 MiB
    made, peak = study.peak_while(lambda: (old[:MIB] + 1) * 2)  # two new tensors of 4 MiB
    assert made.shape == (MIB,) and peak == 24


def test_verdicts():
    assert [study.verdict(gib) for gib in (3.0, 15.9, 16.1)] == ["fits", "fits, but tightly", "does not fit 16 GB"]


def test_the_committed_run_is_read_in_its_units(monkeypatch):
    rows, machine = study.written_run()
    stored = json.loads((study.RESULTS / "memory-cuda.json").read_text(encoding="utf-8"))["rows"]
    wanted = dict(network="HA-GAN", size=64, batch=2, precision="fp32", sub_volume=None)
    (raw,) = [row for row in stored if wanted.items() <= row.items()]
    assert machine["device"] and study.written_step(rows, 64, 2)["driver"] == raw["driver_gib"]
    assert study.written_step(rows, 48, 2) is None
    steps = study.Steps(2, 1)
    monkeypatch.setattr(steps, "report", lambda model, size: report(9, mean=2))
    assert study.driver_memory(rows, steps, 64) == pytest.approx(1024 * raw["driver_gib"] - 2)
    assert study.written_bytes(rows, steps, [64])[64]["allocated"] == raw["allocated_gib"] * 2**30
    both = study.against_estimate(rows, steps, pd.DataFrame({"HA-GAN": [4.0]}, [64]))
    assert both.loc[(64, "HA-GAN"), "driver"] == pytest.approx(raw["driver_gib"] - 2 / 1024)
    assert both.loc[(64, "HA-GAN"), "driver / estimated"] == pytest.approx((raw["driver_gib"] - 2 / 1024) / 4)


def test_other_widths_have_no_committed_numbers():
    rows, _ = study.written_run()
    narrow = study.Steps(2, narrower=4)
    assert np.isnan(study.driver_memory(rows, narrow, 64)) and study.written_bytes(rows, narrow, [64]) == {}
    assert study.against_estimate(rows, narrow, pd.DataFrame({"HA-GAN": [4.0]}, [64])).empty


def test_committed_step_times_have_a_row_a_precision_and_form():
    table, machine, notes = study.written_seconds()
    assert set(table.index.get_level_values("precision")) == set(notes) == {"fp32", "tf32", "bf16"}
    assert (table["iteration"] > 0).all() and machine["torch"]


def test_levers_are_held_against_the_lever_before():
    ladder = {
        "multiplier 1/2": report(200),
        "sub-volume": report(100, activations=60),
        "checkpointing": report(75, inputs=9),
    }
    assert study.levers_save(ladder).to_dict() == {"sub-volume": 50, "checkpointing": 25}
    table = study.lever_table(ladder, {"sub-volume": 40, "checkpointing": None})
    assert table["you (% saved)"].tolist() == [40, None] and table["accounted (% saved)"].tolist() == [50, 25]
    assert table["peak in"].tolist() == ["G", "G"] and table["activations (MiB)"].tolist() == [60, 0]
    assert table["largest part"].tolist() == ["activations", "inputs"]


def test_the_fastest_step_counts_and_the_first_does_not(monkeypatch):
    clock = iter([0, 1, 1, 6, 6, 9, 9, 13])
    monkeypatch.setattr(study.time, "perf_counter", lambda: next(clock))
    assert study.fastest_seconds(Training(lambda: None, {}, {}, {}), 3) == 3


def test_a_power_law_is_found():
    table = pd.DataFrame({"use": ["a"] * 3, "S": [16, 32, 64], "bytes": [5 * S**1.5 for S in (16, 32, 64)]})
    assert study.power_law(table, "bytes")["a"] == pytest.approx(0.5)


def test_costs_have_a_row_a_use_and_size(monkeypatch):
    monkeypatch.setattr(study, "one_volume", lambda use, made: (use, made))
    monkeypatch.setattr(study, "account", lambda make: report(1, activations=make()[1], parameters=5))
    monkeypatch.setattr(study, "fastest_seconds", lambda training, repeats: 2.0)
    table = study.cost_table(lambda size: size, [2, 4], 1)
    assert list(zip(table["use"], table["S"], strict=True))[:3] == [("training", 2), ("training", 4), ("encoding", 2)]
    assert table["bytes"].tolist()[:2] == [2 * MIB, 4 * MIB] and table["ns / voxel"][0] == 2e9 / 8


@pytest.mark.parametrize("use", ["training", "encoding", "generation"])
def test_one_volume_is_trained_encoded_or_generated(use):
    steps = study.Steps(1, narrower=16)
    algorithm = steps.build("HA-GAN", 32)
    before = algorithm.networks["G^A"].first.weight.detach().clone()
    out = study.one_volume(use, algorithm).step()
    moved = not torch.equal(before, algorithm.networks["G^A"].first.weight)
    assert moved == (use == "training")
    if use != "training":
        assert out.shape == ((1, 64) if use == "encoding" else (1, 1, 32, 32, 32))
