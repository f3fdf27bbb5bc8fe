"""The study of the scores: thresholds have their stated error, and planted defects are noticed by the right score."""

import numpy as np
import pytest
import torch
from test_rivals import Given, volumes

from medsynth_lib.evaluation.generation import nearest_neighbours
from medsynth_lib.experiments import detection
from medsynth_lib.settings import Lesson09Settings

pytestmark = pytest.mark.slow  # by their number


def moments(study, v):
    """Two moments in the place of an extractor's features and of structures."""
    flat = v.flatten(1).double()
    found = torch.stack([flat.mean(1), flat.std(1)], 1).numpy()
    near = nearest_neighbours(v, study.training)["distance"].to_numpy(float)[:, None]
    return {"features": found, "structures": found[:, :1], "nearness": near}


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setattr(detection, "views_of", moments)
    return Given(volumes(40, 1), volumes(40, 2))


def test_one_split_in_twenty_passes_a_threshold():
    """200 new halves of the same distribution: 5 % lie above, up to 4 standard errors of both draws."""
    rng = np.random.default_rng(0)

    def draw(n):
        return {"structures": rng.standard_normal((n, 3)), "nearness": rng.standard_normal((n, 1))}

    views = draw(400)
    limits = detection.thresholds(views)
    assert set(limits) == {"W2 of structures", "nearness to training volumes"}
    for name, (view, score) in detection.scores(views).items():
        above = np.mean([score(draw(200)[view], draw(200)[view]) > limits[name] for _ in range(200)])
        assert above < 0.05 + 4 * (0.05 * 0.95 * 2 / 200) ** 0.5, name


def test_copies_are_noticed_by_nearness_alone(study):
    table = detection.detection_of("copies", study).set_index(["size", "score"])
    assert table.loc[(1.0, "nearness to training volumes"), "noticed"]
    assert table.loc[(1.0, "nearness to training volumes"), "value"] > 0
    assert not table.loc[(1.0, "FID"), "noticed"]  # copies have the right distribution
    assert not table.xs(0.0)["noticed"].any()


def test_noise_is_noticed_and_the_score_rises(study):
    table = detection.detection_of("noise", study)
    curve = table[table["score"] == "FID"].set_index("size")["value"]
    assert curve[curve.index >= 0.02].is_monotonic_increasing  # smaller ones are below what halves differ by
    assert table[(table["score"] == "FID") & (table["size"] == 0.2)]["noticed"].all()
    assert (table["n"] == 20).all() and (table["unit"] == "sigma of a range of 2").all()


def test_the_defect_is_planted_in_one_half_only(study):
    """At size 0 a row compares the halves as they are."""
    table = detection.detection_of("mode dropped", study).set_index(["size", "score"])
    raw = moments(study, study.real)
    sound = detection.standardised(raw, raw)
    _, fid = detection.scores(sound)["FID"]
    assert table.loc[(0.0, "FID"), "value"] == pytest.approx(fid(sound["features"][:20], sound["features"][20:]))


def test_every_defect_has_growing_sizes_and_a_cell():
    for defect in detection.DEFECTS.values():
        assert list(defect.sizes) == sorted(defect.sizes) and defect.sizes[0] > 0
    brain, chest = (detection.cells(Lesson09Settings(), m) for m in ("t1", "ct"))
    assert len(brain) == len(detection.DEFECTS) and len(chest) == len(brain) - 1
    assert len({cell.key for cell in brain + chest}) == len(brain) + len(chest)
