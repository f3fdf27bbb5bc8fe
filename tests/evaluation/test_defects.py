"""Planted defects have the size that they state, and a score rises with it."""

from functools import partial

import numpy as np
import pytest
import torch

from medsynth_lib.evaluation.defects import (
    blurred,
    noisy,
    other_contrast,
    slab_shifted,
    smaller_structure,
    with_copies,
    without_mode,
)
from medsynth_lib.evaluation.set_scores import frechet_distance

N = 24


@pytest.fixture(scope="module")
def balls():
    """Volumes of bright balls of random radius on a dark, slightly textured background, and their labels."""
    rng, axis = np.random.default_rng(0), torch.arange(N) - (N - 1) / 2
    radius = torch.from_numpy(rng.uniform(4, 7, 40)).float()
    r = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
    inside = r[None] < radius[:, None, None, None]
    texture = torch.from_numpy(0.05 * rng.standard_normal(inside.shape)).float()
    return (inside.float() - 0.5 + texture)[:, None], inside.long(), radius


def moments(volumes):
    """Mean, standard deviation, roughness and the same in the middle slab: features a reader can follow."""
    rough = volumes.diff(dim=3).abs().mean((1, 2, 3, 4))
    middle = volumes[:, :, N // 2 - 2 : N // 2 + 2].mean((1, 2)).flatten(1)[:, ::37]
    return (
        torch.cat([volumes.mean((1, 2, 3, 4))[:, None], volumes.std((1, 2, 3, 4))[:, None], rough[:, None], middle], 1)
        .double()
        .numpy()
    )


def test_size_zero_changes_nothing(balls):
    volumes, labels, radius = balls
    for changed in (
        blurred(volumes, 0),
        noisy(volumes, 0),
        slab_shifted(volumes, 0, 6),
        with_copies(volumes, 0, volumes.flip(0)),
        smaller_structure(volumes, 0, labels, 1),
    ):
        assert torch.equal(changed, volumes)
    assert torch.allclose(other_contrast(volumes.clip(-1, 1), 0), volumes.clip(-1, 1), atol=1e-6)
    assert sorted(without_mode(volumes, 0, radius).mean((1, 2, 3, 4)).tolist()) == sorted(
        volumes.mean((1, 2, 3, 4)).tolist()
    )


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_structure_loses_the_share_that_was_asked_for(balls, share):
    labels = balls[1]
    volumes = blurred(labels[:, None].float(), 0.7)  # soft edges, so that a tenth of a voxel counts
    before = volumes.sum((1, 2, 3, 4))
    after = smaller_structure(volumes, share, labels, 1).sum((1, 2, 3, 4))
    assert float((1 - after / before).mean()) == pytest.approx(share, abs=0.02)


def test_a_structure_that_is_absent_changes_nothing(balls):
    volumes, labels, _ = balls
    assert torch.equal(smaller_structure(volumes[:2], 0.2, labels[:2], 7), volumes[:2])


def test_noise_and_blur_have_their_width(balls):
    volumes = balls[0]
    quiet = torch.zeros_like(volumes)
    assert float(noisy(quiet, 0.1).std()) == pytest.approx(0.1, rel=0.01)
    point = torch.zeros(1, 1, N, N, N)
    point[0, 0, N // 2, N // 2, N // 2] = 1
    profile = blurred(point, 2.0)[0, 0].sum((1, 2)).double()
    assert float((profile * (torch.arange(N) - N // 2) ** 2).sum() / profile.sum()) == pytest.approx(4, rel=0.05)


def test_the_slab_alone_is_shifted(balls):
    volumes = balls[0]
    shifted = slab_shifted(volumes, 1, 6)
    assert torch.equal(shifted[:, :, :9], volumes[:, :, :9]) and torch.equal(shifted[:, :, 15:], volumes[:, :, 15:])
    assert torch.equal(shifted[:, :, 9:15, 1:], volumes[:, :, 9:15, :-1])


def test_copies_and_a_dropped_mode_are_counted(balls):
    volumes, _, radius = balls
    training = -volumes
    copied = with_copies(volumes, 0.25, training)
    assert [torch.equal(a, b) for a, b in zip(copied, training, strict=True)].count(True) == 10
    left = without_mode(volumes, 0.5, radius)
    assert len(left) == len(volumes)
    assert float((left > 0).sum((1, 2, 3, 4)).max()) <= float(
        (volumes[radius <= radius.median()] > 0).sum((1, 2, 3, 4)).max()
    )


@pytest.mark.parametrize(
    "name, sizes",
    [("blur", (0, 0.7, 1.5)), ("noise", (0, 0.1, 0.3)), ("slab", (0, 2, 5)), ("contrast", (0, 0.2, 0.5)),
     ("structure", (0, 0.2, 0.5)), ("mode", (0, 0.4, 0.8))],
)  # fmt: skip
def test_a_score_rises_with_the_defect(balls, name, sizes):
    volumes, labels, radius = balls
    real, other = volumes[::2], volumes[1::2]
    defect = {
        "blur": blurred,
        "noise": noisy,
        "slab": lambda v, k: slab_shifted(v, k, 6),
        "contrast": other_contrast,
        "structure": partial(smaller_structure, labels=labels[1::2], label=1),
        "mode": partial(without_mode, factor=radius[1::2]),
    }[name]
    scores = [frechet_distance(moments(real), moments(defect(other, size))) for size in sizes]
    assert scores == sorted(scores) and scores[-1] > 2 * scores[0]
