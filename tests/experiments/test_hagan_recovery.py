"""Volumes of lesson 06, and short trainings that leave nothing behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medsynth_lib.data.preparation.cubes import CubeContract
from medsynth_lib.experiments.hagan_recovery import first_volumes, grid_dice, lesion_pairs
from medsynth_lib.experiments.short_training import train_briefly
from medsynth_lib.settings import Lesson06Settings, TrainingSettings
from medsynth_lib.training.loop import Algorithm, Run

SETTINGS = replace(Lesson06Settings(), shape=(50, 50, 33), spacing=4.8, lesions=1)


def test_the_first_volumes_are_read_and_no_more_than_there_are():
    cubes = [dict(x=torch.full((1, 2, 2, 2), float(k)), spacing=torch.full((3,), k + 1.0)) for k in range(3)]
    x, spacing = first_volumes(cubes, 2)
    assert x.shape == (2, 1, 2, 2, 2) and x[:, 0, 0, 0, 0].tolist() == [0, 1] and spacing[1].tolist() == [2, 2, 2]
    assert len(first_volumes(cubes, 9)[0]) == 3


@pytest.mark.slow
def test_a_finer_grid_costs_less():
    coarse, fine = (grid_dice([3], SETTINGS, CubeContract("t1", size)) for size in (16, 64))
    assert coarse["cerebral white matter"] < fine["cerebral white matter"] <= 1
    assert coarse.mean() < fine.mean()


@pytest.mark.slow
def test_twins_differ_where_the_tumour_is(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path))
    sick, seg, healthy = lesion_pairs(SETTINGS, CubeContract("t1", 32))
    assert sick.shape == healthy.shape == seg.shape == (1, 1, 32, 32, 32)
    difference, lesion = (sick - healthy).abs(), seg > 0
    assert lesion.any() and difference[lesion].mean() > 3 * difference[~lesion].mean()


class Halving(Algorithm):
    """One weight that is halved at every step; its loss is the weight before."""

    reads = ("x",)

    def __init__(self):
        self.settings = TrainingSettings(learning_rate=0.0)
        self.networks = {"net": torch.nn.Linear(1, 1, bias=False)}
        torch.nn.init.constant_(self.networks["net"].weight, 8.0)
        self.optimisers = {"net": torch.optim.SGD(self.networks["net"].parameters(), 0.0)}

    def step(self, batch, run=Run()):
        weight = self.networks["net"].weight
        loss = weight.detach().mean().clone()
        weight.data *= 0.5
        return {"loss": loss}

    def validate(self, batch):
        return {"left": self.networks["net"].weight.detach().mean()}


def test_a_short_training_gives_its_last_row_and_begins_anew_each_time():
    samples = [dict(x=torch.zeros(1))] * 2
    algorithm = Halving()
    row = train_briefly(algorithm, samples, samples, steps=3)
    assert row["step"] == 3 and row["loss"] == pytest.approx(np.mean([8, 4, 2])) and row["tune_left"] == 1
    assert train_briefly(Halving(), samples, samples, steps=1)["tune_left"] == 4  # no checkpoint was found
