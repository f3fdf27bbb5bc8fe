"""The generator with an information term goes on from trained networks, and from their running mean."""

import copy

import torch

from medsynth_lib.models.hagan_joint import networks
from medsynth_lib.settings import InformedHAGANSettings
from medsynth_lib.training.hagan_build import build
from medsynth_lib.training.hagan_information import Posterior


def test_running_means_go_on_from_those_of_the_start():
    start = networks(32, 8, 2, 0.25)
    start["mean G^H"] = copy.deepcopy(start["G^H"])
    torch.nn.init.constant_(start["mean G^H"].last.bias, 0.25)
    start["Q"] = Posterior(2)
    settings = InformedHAGANSettings(size=32, latent=8, c=2, fraction=0.25, average=0.9, lean=True)
    model = build(settings, torch.eye(2, 8), start)
    assert model.networks["mean G^H"].last.bias.item() == 0.25
    assert torch.equal(model.networks["G^H"].last.bias, start["G^H"].last.bias)
    assert torch.equal(model.networks["mean G^A"].first.weight, start["G^A"].first.weight)  # no mean of it was given
