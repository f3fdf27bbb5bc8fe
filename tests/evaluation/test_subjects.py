"""Scores of several subjects, and the parameters of a network."""

import numpy as np
import torch
from torch import nn

from medsynth_lib.evaluation.image import psnr
from medsynth_lib.evaluation.networks import count_parameters
from medsynth_lib.evaluation.subjects import psnrs


def test_each_image_is_scored_inside_its_own_mask():
    rng = np.random.default_rng(0)
    images, truths = torch.from_numpy(rng.random((2, 3, 1, 4, 4, 4)))
    masks = torch.from_numpy(rng.random((3, 1, 4, 4, 4)) > 0.5)
    scores = psnrs(images, truths, masks)
    assert scores.shape == (3,)
    assert scores.tolist() == [psnr(images[k], truths[k], masks[k]) for k in range(3)]


def test_parameters_are_counted_once():
    network = nn.Sequential(nn.Conv3d(2, 5, 3), nn.BatchNorm3d(5))
    assert count_parameters(network) == 2 * 5 * 27 + 5 + 5 + 5
