"""What lesson 07 knows of the patients: the simulator's truth where it made them, and the tables of real sets."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.experiments.latent_domain import Domain, log_spirometry, require_measured, true_factors
from medsynth_lib.files import DataError

TRUTH = dict(lung_ml=[4000.0, 5000], fat_ml=[3000.0, 2000], bone_ml=[900.0, 700], emphysema_percent=[1.0, 3])
LUNG, FAT = "lung", "fat"


class Cubes(list):
    """Samples of one voxel size, with a manifest."""


def domain(**columns):
    cubes = Cubes([dict(spacing=torch.ones(3))] * 2)
    cubes.manifest = Manifest(pd.DataFrame(dict(subject=["a", "b"], site="S", **columns)), Path("folder"))
    population = pd.DataFrame(
        {LUNG: [4000.0, 5000], FAT: [2000.0, 3000], "bone": [700.0, 900], "log emphysema": [0.0, 1]}
    )
    return Domain("ct", {"train": cubes}, "simulated", {}, 4, torch.ones(3), population=population)


def test_the_truth_is_asked_of_the_simulator_alone():
    """A look-alike calls its images simulated, too, but has no truth beside them."""
    known = true_factors(domain(simulated=[True, True], **TRUTH), 2)
    assert known.shape == (2, 4) and np.allclose(known[:, 0], [-(0.5**0.5), 0.5**0.5])  # lungs in SD of 707 ml
    assert true_factors(domain(), 2) is None
    assert true_factors(domain(**TRUTH), 2) is None  # a table of somebody's own measurements
    assert true_factors(domain(simulated=[True, True]), 2) is None


def test_spirometry_that_is_missing_or_no_number_is_nan():
    manifest = Manifest(pd.DataFrame(dict(fev1pp=["80", "", "n/a", "0", "-5"], age=range(5))), Path("folder"))
    found = log_spirometry(manifest)
    assert list(found) == ["log FEV1pp"]
    assert np.allclose(found["log FEV1pp"], [np.log(80), *[np.nan] * 4], equal_nan=True)


def test_too_few_volumes_that_can_be_measured_are_refused():
    values = pd.DataFrame({LUNG: [1.0, 2, 3, np.nan, np.nan], FAT: 1.0})
    opened = SimpleNamespace(splits=domain().splits, names=(LUNG, FAT), noun="chests")
    with pytest.raises(DataError, match="folder: lung, fat can be measured in 3 of 5 training chests.* at least 4"):
        require_measured(values, opened)
    require_measured(values.fillna(1.0), opened)
