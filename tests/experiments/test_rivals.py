"""Lesson 09's study: equal budgets, contenders without training, and what a row of scores says."""

import dataclasses
from functools import cached_property

import pytest
import torch
from torch import nn

from medsynth_lib.experiments import rivals
from medsynth_lib.settings import BaselineSettings, HAGANSettings, Lesson09Settings, load_settings

pytestmark = pytest.mark.slow  # by their number


def small():
    return dataclasses.replace(load_settings("09", "quick"), samples=12, permutations=39)


def volumes(n, seed=0, scale=1.0):
    return (0.2 * scale * torch.randn(n, 1, 32, 32, 32, generator=torch.Generator().manual_seed(seed))).clamp(-1, 1)


class Given(rivals.Study):
    """A study of given volumes, whose chests are described by two moments instead of lungs."""

    def __init__(self, real, training):
        super().__init__(small(), "ct")
        self.given = real, training

    @cached_property
    def real(self):
        return self.given[0]

    @cached_property
    def training(self):
        return self.given[1]

    def views(self, volumes):
        moments = torch.stack([volumes.flatten(1).mean(1), volumes.flatten(1).std(1)], 1).double().numpy()
        return {"FID": rivals.Features(moments, "moments", "none")}


def test_contenders_share_size_batch_and_steps():
    settings = Lesson09Settings()
    found = rivals.contenders(settings)
    assert list(found) == [rivals.MAIN, *rivals.FORMS, *rivals.RIVALS]
    for training in found.values():
        same = ("size", "latent", "batch_size", "steps")
        assert all(getattr(training, name) == getattr(settings.hagan, name) for name in same)
        if isinstance(training, HAGANSettings):
            assert (training.c, training.fraction, training.lam) == (8, 1 / 4, 10.0)
        else:
            assert isinstance(training, BaselineSettings) and training.lean
    assert (found["WGAN"].width, found["Progressive GAN"].width, found["WGAN"].widest) == (16, 4, 128)


def test_equal_time_changes_the_steps_alone():
    steps = {name: 100 + k for k, name in enumerate(rivals.contenders(Lesson09Settings()))}
    settings = dataclasses.replace(Lesson09Settings(), steps_of_equal_time=steps)
    one, other = (rivals.training_of(settings, "WGAN", budget, 2) for budget in rivals.BUDGETS)
    assert other == dataclasses.replace(one, steps=steps["WGAN"]) and one.seed == 2
    assert len(rivals.cells(settings, "t1")) == 3 + 3 * 2 * 14
    wrong = dataclasses.replace(settings, steps_of_equal_time={"WGAN": 1, "WGANN": 2} | dict(list(steps.items())[1:]))
    with pytest.raises(ValueError, match="WGANN"):
        rivals.cells(wrong, "t1")


def test_every_cell_has_a_name_and_a_key_of_its_own():
    """Seeds come before folds, and a seed is finished before the next."""
    found = rivals.cells(Lesson09Settings(), "t1")
    assert len(found) == 3 + 3 * 14  # no steps of equal time are known
    assert len({cell.name for cell in found}) == len({cell.key for cell in found}) == len(found)
    seeds = [int(cell.name[-1]) for cell in found[3:]]
    assert seeds == sorted(seeds)


def test_contenders_without_training():
    training = volumes(10)
    mean, copies = (rivals.draw_untrained(name, training, 8, 4, 0) for name in ("mean volume", "copies"))
    assert mean.shape == (8, 1, 32, 32, 32) and torch.allclose(mean, training.mean(0))
    assert all(any(torch.equal(copy, one) for one in training) for copy in copies)
    assert len({copy.numpy().tobytes() for copy in copies}) == 8


def test_the_pca_sampler_has_the_directions_and_variances_of_the_training_volumes():
    """Volumes that vary along two patterns only, with deviations .3 and .1: so do 400 samples, within 15 %."""
    patterns = torch.linalg.qr(torch.randn(32**3, 2, generator=torch.Generator().manual_seed(0)))[0].T
    weights = torch.randn(200, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.3, 0.1])
    training = (weights @ patterns).view(200, 1, 32, 32, 32)
    drawn = rivals.draw_untrained("PCA", training, 400, 2, 0).flatten(1)
    coordinates = drawn @ patterns.T
    assert torch.allclose(coordinates @ patterns, drawn, atol=1e-4)
    assert torch.allclose(coordinates.std(0), weights.std(0), rtol=0.15)


def test_a_row_carries_n_floor_interval_extractor_and_p():
    study = Given(volumes(24, 1), volumes(20, 2))
    table = rivals.score(study, volumes(12, 3), seed=0).set_index("score")
    fid = table.loc["FID"]
    assert fid["n"] == 12 and fid["extractor"] == "moments" and fid["low"] <= fid["value"] <= fid["high"]
    assert table.loc["MMD", "p"] > 0.05  # the same distribution
    assert table.loc[["laplacian_energy / real", "spread / real"], "value"].tolist() == pytest.approx([1, 1], rel=0.05)
    other = rivals.score(study, volumes(12, 3, scale=1.5), seed=0).set_index("score")
    assert other.loc["FID", "value"] > 10 * fid["floor"] and other.loc["MMD", "p"] == 1 / 40
    assert other.loc["spread / real", "value"] == pytest.approx(1.5, rel=0.05)


def test_copies_are_told_by_their_distance_to_training_volumes():
    training = volumes(20, 2)
    table = rivals.score(Given(volumes(24, 1), training), training[:12], seed=0).set_index("score")
    row = table.loc["distance to a training volume"]
    assert row["value"] == 0 < row["floor"]


def test_a_chest_without_a_lung_has_no_millilitres():
    study = rivals.Study(small(), "ct")
    of_real = {"W2": rivals.Features(torch.randn(8, 4).double().numpy(), "structure volumes", repr(study.contract))}
    vars(study).update(of_real=of_real, real=volumes(8, 1), training=volumes(8, 2), spacing=torch.ones(3))
    row = rivals.score(study, volumes(6), seed=0).iloc[0]  # noise has no lung
    assert row["score"] == "W2" and row["n"] == 4 and row["value"] > 0


def test_samples_of_a_rival_stay_in_range_and_depend_on_the_seed():
    class Unbounded(nn.Module):
        def forward(self, z):
            return 3 * z[:, :1, None, None, None].expand(-1, 1, 4, 4, 4)

    settings = rivals.contenders(Lesson09Settings())["WGAN"]
    trained = type("T", (), dict(settings=settings, networks={"G": Unbounded()}))
    one, again, other = (rivals.draw(trained, 6, seed) for seed in (0, 0, 1))
    assert one.abs().max() == 1 and torch.equal(one, again) and not torch.equal(one, other)
