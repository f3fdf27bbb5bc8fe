"""What the adaptation loss prefers: divergences of known Gaussians, and when a difference counts."""

import numpy as np
import pandas as pd
import pytest
import torch

from medsynth_lib.experiments.adaptation import loss_preferences as seen
from medsynth_lib.models.divergence import wasserstein2
from medsynth_lib.models.svae import Encoder
from medsynth_lib.settings import SliceVAESettings
from medsynth_lib.training.adaptation import aggregate, posterior


def gaussian(mean, sd=1.0):
    return torch.full((1, 4), float(mean)), torch.full((1, 4), 2 * float(np.log(sd)))


def test_divergences_of_unit_gaussians():
    table = seen.divergences(gaussian(0), {"same": [gaussian(0), gaussian(1)], "far": [gaussian(2), gaussian(3)]})
    assert table["same"].tolist() == pytest.approx([0, 0.5]) and table["far"].tolist() == pytest.approx([2, 4.5])
    squared = seen.divergences(gaussian(0), {"far": [gaussian(3)]}, wasserstein2)
    assert squared["far"].tolist() == pytest.approx([9])


def test_aggregates_are_compared_as_one_distribution():
    pair = [gaussian(-1), gaussian(1)]
    table = seen.divergence_of_aggregates(
        aggregate(*map(torch.cat, zip(*pair, strict=True))), {"both": pair, "one": pair[:1]}
    )
    assert len(table) == 1 and table.loc[0, "both"] == pytest.approx(0, abs=1e-6) and table.loc[0, "one"] > 0.1


def test_every_candidate_is_encoded_as_the_adaptation_does():
    settings = SliceVAESettings(size=16, width=8)
    torch.manual_seed(0)
    encoder = Encoder(16, 2, settings.norm, settings.width).eval()
    t1 = torch.rand(3, 1, 16, 16, 16)
    prior, found = seen.encode_all(encoder, settings, t1, {"first": [t1[0], t1[1]], "zero": [0 * t1[0]]})
    assert {name: len(v) for name, v in found.items()} == {"first": 2, "zero": 1}
    mean, log_variance = found["first"][1]
    expected = posterior(encoder, t1[1][None], settings)
    assert torch.equal(mean, expected[0]) and torch.equal(log_variance, expected[1])
    assert prior[0].shape[1:] == mean.shape[1:] and not prior[0].requires_grad


def test_only_a_clear_difference_counts():
    rng = np.random.default_rng(0)
    output = pd.Series(1 + 0.1 * rng.standard_normal(12))
    values = pd.DataFrame({"output at B": output, "lower": output - 0.1 + 0.01 * rng.standard_normal(12),
                           "a hair lower": output - 0.001, "unclear": output + 0.5 * rng.standard_normal(12),
                           "higher": output + 1})  # fmt: skip
    assert seen.preferred(values) == ["lower"]
    assert seen.preferred(values.iloc[:1]) in (
        ["lower"],
        ["lower", "unclear"],
    )  # one subject: no interval, only the margin
    text = seen.means_and_sds({"KL": values, "one": values.iloc[:1]})
    assert text.loc["higher", "KL"] == f"{values['higher'].mean():.3f} ± {values['higher'].std():.3f}"
    assert text.loc["higher", "one"] == f"{values['higher'][0]:.3f}"
