"""Extractors: what the features are, that they carry their origin, and that other weights are refused."""

import numpy as np
import pytest
import torch
from monai.networks.nets import resnet50
from torch import nn

from medsynth_lib.data.preparation.cubes import CubeContract
from medsynth_lib.evaluation.extractors import extract, medicalnet, weights_hash
from medsynth_lib.evaluation.set_scores import frechet_distance, scored
from medsynth_lib.files import DataError
from medsynth_lib.training.segmentation import PositionedSegResNet

CONTRACT = CubeContract("t1", 16)


@pytest.fixture
def segmenter():
    torch.manual_seed(0)
    return PositionedSegResNet(8, 3)


def cubes(n=6, seed=1):
    return torch.rand(n, 1, 16, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_features_of_a_segmenter_are_moments_of_its_coarsest_channels(segmenter):
    found = extract(segmenter, cubes(), CONTRACT)
    coarse = segmenter.encode(cubes())[0].detach().double()
    assert found.values.shape == (6, 64) and coarse.shape == (6, 32, 4, 4, 4)
    assert np.allclose(found.values[:, :32], coarse.mean((2, 3, 4)), atol=1e-5)
    assert np.allclose(found.values[:, 32:], coarse.std((2, 3, 4)), atol=1e-5)


def test_a_segmenter_sees_where_a_structure_lies(segmenter):
    """The same structure elsewhere has other features, though no voxel's surroundings differ."""
    here = torch.full((1, 1, 16, 16, 16), -1.0)
    here[..., 4:6, 8, 8] = 1
    there = here.roll(6, 2)
    one, other = (extract(segmenter, x, CONTRACT).values for x in (here, there))
    assert np.abs(one - other).max() > 1e-4


def test_features_do_not_depend_on_company(segmenter):
    whole, alone = (extract(segmenter, x, CONTRACT).values for x in (cubes(), cubes()[4:5]))
    assert np.allclose(whole[4:5], alone, atol=1e-5)


def test_features_name_weights_and_preparation(segmenter):
    torch.manual_seed(1)
    other = PositionedSegResNet(8, 3)
    one = extract(segmenter, cubes(8), CONTRACT)
    assert one.extractor == weights_hash(segmenter) != weights_hash(other)
    for wrong in (extract(other, cubes(8), CONTRACT), extract(segmenter, cubes(8), CubeContract("ct", 16))):
        with pytest.raises(DataError, match="cannot be compared"):
            scored("FID", frechet_distance, one, wrong)


def test_an_unknown_network_is_refused():
    with pytest.raises(DataError, match="Linear"):
        extract(nn.Linear(2, 2), cubes(1), CONTRACT)


@pytest.mark.slow
def test_medicalnet_is_read_from_its_file(tmp_path):
    """The published file has weights under "state_dict", named as by nn.DataParallel, and no last layer."""
    torch.manual_seed(0)
    given = resnet50(spatial_dims=3, n_input_channels=1, shortcut_type="B", bias_downsample=False, feed_forward=False)
    weights = {f"module.{name}": value for name, value in given.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "resnet_50.pth")
    found = medicalnet(tmp_path / "resnet_50.pth")
    features = extract(found, torch.rand(2, 1, 32, 32, 32), CONTRACT)
    assert features.values.shape == (2, 2048) and features.extractor == weights_hash(given)
    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    (tmp_path / "text.pth").write_text("not weights")
    for name in ("empty.pth", "text.pth", "missing.pth"):
        with pytest.raises(DataError, match=name):
            medicalnet(tmp_path / name)
