"""Measured chests against the truth: ratios of means and rank correlations, and a box of known volume."""

import numpy as np
import pandas as pd
import pytest

from medsynth_lib.experiments.chest_measures import against_truth, measure_all


def chest(side):
    """Soft tissue in air, with a lung of side^3 voxels of 4 mm."""
    hu = np.full((40, 40, 40), -1000.0)
    hu[4:36, 4:36, 4:36] = 40
    hu[6 : 6 + side, 6 : 6 + side, 6 : 6 + side] = -850
    return hu


def test_a_row_a_chest():
    table = measure_all([(chest(16), (4, 4, 4)), (chest(20), [4.0, 4.0, 4.0])])
    assert table["lung_ml"].tolist() == pytest.approx([16**3 * 0.064, 20**3 * 0.064], rel=0.02)
    assert list(table) == ["lung_ml", "emphysema_percent", "fat_ml", "bone_ml"]


def test_ratio_and_rank():
    truth = pd.DataFrame({"fat_ml": [1.0, 2.0, 3.0], "bone_ml": [4.0, 5.0, 9.0]})
    tables = {"file": 2 * truth, "cube": truth.iloc[::-1].reset_index(drop=True)}
    found = against_truth(tables, truth)
    assert found["measured / true", "file"].tolist() == [2, 2] and found["measured / true", "cube"].tolist() == [1, 1]
    assert found["rank correlation", "file"].tolist() == pytest.approx([1, 1])
    assert found["rank correlation", "cube"].tolist() == pytest.approx([-1, -1])
