"""The shift split by cause: which scanners stand between two sites, and that the parts add up."""

import numpy as np
import pandas as pd
import pytest
import torch

from medsynth_lib.data.simulation.scanner import CAUSES, SITES, mixed_site
from medsynth_lib.evaluation.image import psnr
from medsynth_lib.experiments.adaptation import shift_causes as split
from medsynth_lib.experiments.adaptation.tasks import input_histograms


def test_the_scanners_between_two_sites():
    a, b = SITES["A"], SITES["B"]
    states, order = split.site_states(a, b), list(CAUSES)
    assert list(states)[0] == ("each alone", "none (site A)") and states["each alone", "none (site A)"] is a
    assert states["each alone", order[2]] == mixed_site(a, b, order[2])
    assert states["in order", order[2]] == mixed_site(a, b, *order[:3])
    assert states["each alone", "another visit"].name == b.name
    assert ("in order", order[0]) not in states and ("in order", "another visit") not in states


def sample(level, truth):
    return dict(x=torch.full((2, 4, 4, 4), level), y=torch.full((1, 4, 4, 4), truth), mask=torch.ones(1, 4, 4, 4) > 0)


def output(scan):
    return scan["x"][:1]


def test_each_score_compares_what_its_name_says():
    home, away = sample(0.5, 0.6), sample(0.2, 0.3)
    found = split.state_scores(output, away, home)
    assert found == {"inputs": psnr(away["x"][:1], home["y"]), "output at Y_t": psnr(away["x"][:1], away["y"]),
                     "true T1": psnr(away["y"], home["y"])}  # fmt: skip


def test_parts_add_up_to_the_gap():
    rng = np.random.default_rng(0)
    states = split.site_states(SITES["A"], SITES["B"])
    scanned = [[sample(*rng.uniform(0.2, 0.8, 2)) for _ in states] for _ in range(3)]
    target = [sample(*rng.uniform(0.2, 0.8, 2)) for _ in range(3)]
    scores = split.score_states(output, states, scanned, target)
    start = scores["each alone"].loc["none (site A)"]
    assert list(scores["in order"].index) == ["none (site A)", *CAUSES, "another visit"]
    first = next(iter(CAUSES))
    pd.testing.assert_series_equal(scores["in order"].loc[first], scores["each alone"].loc[first])
    last = np.mean([split.state_scores(output, t, s[0])["inputs"] for t, s in zip(target, scanned, strict=True)])
    assert scores["in order"].loc["another visit", "inputs"] == pytest.approx(last)

    lost = split.decibels_lost(scores)
    alone = lost["each alone"].loc[first]
    assert alone["by the inputs"] == pytest.approx(start["inputs"] - scores["each alone"].loc[first, "inputs"])
    assert alone["together"] == pytest.approx(alone["by the inputs"] + alone["by the truth"])
    gap = start["inputs"] - scores["in order"].loc["another visit", "output at Y_t"]
    own = start["inputs"] - start["output at Y_t"]  # what the truth costs at the source already
    step = scores["in order"].loc["none (site A)"] - scores["in order"].loc[first]
    assert lost["in order"].loc["sum", "together"] == pytest.approx(gap - own)
    assert lost["in order"].loc[first, "by the inputs"] == pytest.approx(step["inputs"])


def test_histograms_of_the_inputs_are_of_the_brain():
    one = dict(x=torch.rand(2, 6, 6, 6, generator=torch.Generator().manual_seed(0)), mask=torch.zeros(1, 6, 6, 6) > 0)
    one["mask"][0, :3] = True
    outside = one | {"x": one["x"] + (~one["mask"]) * 0.5}
    features = input_histograms(one)
    assert features.shape == (32,) and (features == input_histograms(outside)).all()
    assert features[:16].mean() == pytest.approx(1)  # a density over [0, 1]
