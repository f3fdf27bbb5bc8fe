"""What a direction's rows of the sweep say: complete methods, differences to the control, tests, and shares of the gap."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from medsynth_lib.experiments.adaptation.comparison import Comparison, gap_closed, listed, per_seed, verdict

METHODS = ["no adaptation", "continued training", "physics T1", "supervised, n = 10", "s-VAE, 10 volumes", "never run"]
LEVELS = {  # PSNR of seed 0 and seed 1
    "no adaptation": (18.0, 18.0),
    "continued training": (20.0, 20.5),
    "physics T1": (21.0, 22.0),
    "supervised, n = 10": (22.0, 22.5),
    "s-VAE, 10 volumes": (20.1, None),
}
SUBJECTS = {"a": -1.0, "b": 0.0, "c": 1.5}


def row(method, seed, subject, psnr, target="SIMB"):
    scores = dict.fromkeys(
        [
            "scale_free_psnr_t",
            "scale_free_psnr_s",
            "tumour_psnr_t",
            "tumour_psnr_s",
            "healthy_psnr_t",
            "healthy_psnr_s",
        ],
        1.0,
    )
    scores |= dict.fromkeys(["ssim_t", "ssim_s", "nmi_t", "nmi_s", "paper_psnr_t", "paper_ssim_t"], 0.5)
    scores |= dict(psnr_t=psnr, psnr_s=psnr + 1, dice=0.5 + psnr / 100, dice_wt=0.9, dice_tc=0.8, dice_et=np.nan)
    about = dict(source="SIMA", target=target, method=method, seed=seed, subject=subject, steps=10, seconds=1.5)
    return about | scores | dict(device="CPU", date=f"2026-01-0{seed + 1}")


@pytest.fixture
def comparison():
    rows = [
        row(method, seed, subject, level + shift)
        for method, levels in LEVELS.items()
        for seed, level in enumerate(levels)
        for subject, shift in SUBJECTS.items()
        if level is not None
    ]
    rows.append(row("continued training", 0, "a", 99.0, target="SIMC"))
    return Comparison.of(pd.DataFrame(rows), "SIMA", "SIMB", METHODS, apart=["s-VAE, 10 volumes"])


def test_methods_with_all_seeds_in_the_order_of_the_plan(comparison):
    assert comparison.complete == METHODS[:4] and comparison.ready
    assert comparison.compared == ["no adaptation", "physics T1", "supervised, n = 10"]
    assert comparison.left_out() == ["s-VAE, 10 volumes"]
    state = comparison.state()
    assert (state["rows"], state["with all seeds"], state["seeds"]) == ("5 of 6", 4, 2)
    assert state["first and last date"] == "2026-01-01, 2026-01-02" and state["device"] == "CPU"


def test_differences_are_to_the_control_of_the_same_seed(comparison):
    gains = comparison.over_control("psnr_t")
    assert gains.loc["physics T1"].tolist() == pytest.approx([1.0, 1.5])
    assert (gains.loc["continued training"] == 0).all() and np.isnan(gains.loc["s-VAE, 10 volumes", 1])
    assert comparison.between("supervised, n = 10", "physics T1", "psnr_t") == "+0.50 to +1.00"
    assert comparison.between("s-VAE, 10 volumes", "physics T1", "psnr_t") is None


def test_tables_have_a_row_a_planned_method(comparison):
    images, others = comparison.image_scores(), comparison.other_scores()
    assert images.index.tolist() == others.index.tolist() == METHODS
    mean = (20.0 + 20.5) / 2 + sum(SUBJECTS.values()) / 3
    assert images.loc["continued training", ("PSNR (dB)", "Y_t")] == round(mean, 2)
    assert images.loc["continued training", ("between seeds (dB)", "Y_t")] == round(np.std([20, 20.5], ddof=1), 2)
    assert images[("seeds", "")].tolist() == ["2", "2", "2", "2", "1", "not run"]
    assert str(others.loc["physics T1", "steps"]) == "10" and others.loc["never run", "steps"] == "–"
    assert others.loc["physics T1", "Dice ET"] == "–"


def test_the_papers_numbers_join_the_second_table(comparison):
    paper = pd.DataFrame({"paper: Dice": [0.8216]}, ["physics T1"])
    images, others = comparison.tables("A to B", paper)
    assert images.index.name == "A to B (simulated), images" and "paper: Dice" not in images
    assert others["paper: Dice"].tolist() == ["–", "–", 0.822, "–", "–", "–"]
    assert Comparison.of(comparison.rows, "SIMB", "SIMA", METHODS).tables("B to A") == []


def test_the_test_is_paired_by_subject_after_the_mean_over_seeds(comparison):
    table = comparison.tested("psnr_t", 2)
    assert table.index.tolist() == comparison.compared
    assert table.loc["physics T1", "difference [95 %]"] == "+1.25 [+1.25, +1.25]"  # the same for each subject
    assert table.loc["physics T1", "worst to best seed"] == "+1.00 to +1.50" and table.loc["physics T1", "effect"] == 1
    assert float(table.loc["physics T1", "p, Holm"]) == pytest.approx(0.75)  # three subjects: 0.25, times three rows


def test_gap_closed_is_seed_by_seed(comparison):
    rows = [("continued training", 20, 21), ("supervised, n = 10", 22, 25), ("mine", 21, 25)]
    table = pd.DataFrame([dict(method=m, seed=k, subject=s, psnr_t=v + d) for m, *vs in rows
                         for k, v in enumerate(vs) for s, d in (("a", -1.0), ("b", 1.0))])  # fmt: skip
    closed = gap_closed(per_seed(table))
    assert np.allclose(closed.loc["mine"], [0.5, 1.0]) and (closed.loc["continued training"] == 0).all()
    found = comparison.gaps_closed()
    assert found.index.tolist() == ["physics T1"]
    assert found.loc["physics T1", ["seed 0", "seed 1", "median", "worst"]].tolist() == pytest.approx(
        [0.5, 0.75, 0.625, 0.5]
    )
    assert found.loc["physics T1", "Dice lower by"] == pytest.approx(-0.0125)
    assert replace(comparison, methods=("supervised, n = 10",)).gaps_closed().empty


def test_ranges_and_rank_correlation(comparison):
    ranges = comparison.score_ranges()
    shift = sum(SUBJECTS.values()) / 3
    assert ranges["PSNR (dB), min"] == pytest.approx(18 + shift) and ranges["PSNR (dB), max"] == pytest.approx(
        22.25 + shift
    )
    assert ranges["Spearman"] == pytest.approx(1)


def test_a_verdict_needs_three_seeds_and_dice():
    good = pd.Series(
        {"seed 0": 0.9, "seed 1": 0.8, "seed 2": 0.85, "median": 0.85, "worst": 0.8, "Dice lower by": 0.005}
    )
    assert verdict(good, 0.85) == "reached" and verdict(good, 0.86) == "not reached"
    assert verdict(good.replace(0.005, 0.02), 0.5) == "not reached"
    assert verdict(good.replace(0.005, np.nan), 0.5) == "not decided"
    assert verdict(good.drop("seed 2"), 0.5) == "not decided"


def test_a_list_is_cut():
    assert (
        listed([]) == "no row"
        and listed(["a", "b"]) == "a, b"
        and listed(list("abcdefg")) == "a, b, c, d, e and 2 more"
    )
