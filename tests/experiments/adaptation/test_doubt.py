"""Errors of synthetic T1 where the map says "do not trust", and elsewhere."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.files.nifti import write_volume
from medsynth_lib.data.preparation.contract import Contract
from medsynth_lib.data.preparation.pairs import PairedVolumes
from medsynth_lib.experiments.adaptation.doubt import errors_by_doubt, read_output

SHAPE, AFFINE = (20, 20, 20), np.diag([10.0, 10, 10, 1])


def test_the_error_is_split_by_the_map(tmp_path):
    rng = np.random.default_rng(0)
    brain = np.zeros(SHAPE)
    brain[4:16, 4:16, 4:16] = 1
    for contrast in ("flair", "t2", "t1"):
        nib.save(
            nib.Nifti1Image((brain * rng.uniform(100, 900, SHAPE)).astype(np.float32), AFFINE),
            tmp_path / f"{contrast}.nii.gz",
        )
    table = pd.DataFrame(
        [dict(subject="007", site="B", split="adapt", flair="flair.nii.gz", t2="t2.nii.gz", t1="t1.nii.gz", seg="")]
    )
    pairs = PairedVolumes(Manifest(table, tmp_path), Contract(spacing=(10.0,) * 3, size=(16, 16, 16)))
    doubt = np.zeros(SHAPE)
    doubt[4:8] = 1
    truth = np.zeros(SHAPE)
    truth[2:18, 2:18, 2:18] = pairs[0]["y"][0]
    out = tmp_path / "out"
    write_volume(out / "B_007_t1.nii.gz", 1000 * truth + 30 + 70 * doubt, AFFINE)
    write_volume(out / "B_007_do_not_trust.nii.gz", doubt, AFFINE, dtype="uint8")
    assert set(np.unique(read_output(out, "007", "do_not_trust"))) == {0, 1}
    errors = errors_by_doubt(pairs, out, 1)
    assert errors.index.tolist() == ["007"]
    assert errors.loc["007", ["doubtful", "elsewhere"]].tolist() == pytest.approx([0.1, 0.03], abs=0.001)
    assert errors.loc["007", "ratio"] == pytest.approx(10 / 3, rel=0.03)
