"""Helpers around broken input: the voxel that is set, and the words of a refusal."""

import nibabel as nib
import numpy as np
import pytest

from medsynth_lib.data.files.nifti import read_volume
from medsynth_lib.experiments.broken_input import complaint, stored_image, with_voxel


def image():
    return nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2.0, 2, 2, 1]))


def test_one_voxel_changes_and_the_image_stays():
    good = image()
    broken = with_voxel(good, np.nan)
    values = broken.get_fdata()
    assert np.isnan(values[1, 2, 3]) and np.isnan(values).sum() == 1 and (broken.affine == good.affine).all()
    assert good.get_fdata()[1, 2, 3] == 33


def test_a_complaint_hides_the_folder_and_must_come(tmp_path):
    nib.save(with_voxel(image(), np.inf), tmp_path / "bad.nii.gz")
    nib.save(image(), tmp_path / "good.nii.gz")
    text = complaint(tmp_path, read_volume, tmp_path / "bad.nii.gz")
    assert text.startswith("…/bad.nii.gz") and str(tmp_path) not in text
    with pytest.raises(AssertionError, match="read_volume"):
        complaint(tmp_path, read_volume, tmp_path / "good.nii.gz")


def test_the_stored_image_of_a_4d_file_is_its_named_volume(tmp_path):
    data = np.arange(48, dtype=np.int16).reshape(2, 3, 4, 2) + 1
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "four.nii.gz")
    nib.save(nib.Nifti1Image(data[..., :1], np.eye(4)), tmp_path / "one#2.nii.gz")
    assert np.array_equal(np.asarray(stored_image(f"{tmp_path}/four.nii.gz#1").dataobj), data[..., 1])
    assert np.array_equal(np.asarray(stored_image(tmp_path / "one#2.nii.gz").dataobj), data[..., 0])
