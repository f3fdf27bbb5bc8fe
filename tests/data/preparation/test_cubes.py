"""HA-GAN's preparation: window, trimming, resizing, and the volumes that survive it."""

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.files.nifti import read_volume, write_volume
from medsynth_lib.data.preparation.crop import voxel_size
from medsynth_lib.data.preparation.cubes import (
    CubeContract,
    Cubes,
    LesionCubes,
    prepare_cube,
    resize,
    scale_ct,
    scale_t1,
    to_hu,
    trim,
)
from medsynth_lib.data.simulation.dataset import simulated_thoraxes
from medsynth_lib.data.simulation.subject import make_subject
from medsynth_lib.data.simulation.thorax import make_thorax
from medsynth_lib.evaluation.ct import measure
from medsynth_lib.files import DataError


def volume(array, spacing=(1.0, 1.0, 1.0)):
    return MetaTensor(torch.as_tensor(np.asarray(array), dtype=torch.float32)[None], affine=np.diag([*spacing, 1.0]))


def test_window_maps_its_ends_and_middle():
    scaled = scale_ct(volume([[[-3000.0, -1024, -212, 600, 2000]]]))
    assert scaled.flatten().tolist() == pytest.approx([-1, -1, 0, 1, 1])


def test_window_and_back():
    hu = volume(np.linspace(-1024, 600, 60).reshape(3, 4, 5))
    assert torch.allclose(to_hu(scale_ct(hu)), hu, atol=1e-3)


def test_ct_that_is_not_in_hu_is_refused():
    with pytest.raises(DataError, match="not a chest CT in HU"):
        scale_ct(volume(np.random.default_rng(0).uniform(0, 4000, (4, 4, 4))))  # the intercept was not applied


@pytest.mark.parametrize("intercept, refused", [(0, True), (-1024, False)])
def test_padding_is_neither_air_nor_proof_of_hu(intercept, refused):
    stored = np.random.default_rng(0).uniform(0, 3000, (6, 6, 6)) + intercept
    stored[:, 0] = -2000  # outside the scanner's field of view
    if refused:
        with pytest.raises(DataError, match="apply the rescale slope and intercept"):
            scale_ct(volume(stored))
    else:
        assert (scale_ct(volume(stored))[0][:, 0] == -1).all()


def test_t1_ends_at_its_percentile_and_background_is_minus_one():
    image = np.zeros((20, 20, 20))
    image[5:15, 5:15, 5:15] = np.arange(1, 1001).reshape(10, 10, 10)
    scaled = scale_t1(volume(image), 99.5)[0].numpy()
    assert (scaled[image == 0] == -1).all() and scaled.max() == 1
    assert (scaled == 1).sum() == 5  # half a percent of 1000 voxels is clipped


def test_t1_with_its_skull_is_refused():
    with pytest.raises(DataError, match="skull"):
        scale_t1(volume(np.random.default_rng(0).uniform(1, 9, (8, 8, 8))))


@pytest.mark.parametrize("blank", [-1024.0, 0.0])
def test_trim_cuts_blank_outer_slices_and_keeps_the_place(blank):
    array = np.full((9, 8, 7), blank)
    array[2:6, 1:7, 3:5] = np.random.default_rng(0).uniform(1, 2, (4, 6, 2))
    array[4] = blank  # a blank slice inside is data: it stays
    cut = trim(volume(array, (2.0, 3.0, 4.0)))
    assert cut.shape == (1, 4, 6, 2) and np.allclose(cut.affine[:3, 3], (4, 3, 12))
    assert np.array_equal(cut[0].numpy(), array[2:6, 1:7, 3:5].astype(np.float32))


def test_trim_refuses_a_blank_volume():
    with pytest.raises(DataError, match="every slice is blank"):
        trim(volume(np.zeros((4, 4, 4))))


def test_resizing_keeps_mean_range_and_extent():
    image = volume(np.random.default_rng(0).uniform(-1, 1, (48, 36, 60)), (1.0, 1.5, 2.0))
    cube = resize(image, 24)
    assert cube.shape == (1, 24, 24, 24)
    assert float(cube.mean()) == pytest.approx(float(image.mean()), abs=0.01)
    assert cube.min() >= -1 and cube.max() <= 1
    assert voxel_size(cube) == pytest.approx((2.0, 2.25, 5.0))  # 48 mm, 54 mm and 120 mm in 24 voxels each


def test_same_cube_from_every_orientation(tmp_path):
    thorax = make_thorax(0, (32, 36, 40))
    write_volume(tmp_path / "ras.nii.gz", thorax.hu, thorax.affine)
    turned = thorax.affine @ np.array([[-1, 0, 0, 31], [0, -1, 0, 35], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_volume(tmp_path / "lps.nii.gz", thorax.hu[::-1, ::-1], turned)
    cubes = [prepare_cube(read_volume(tmp_path / f"{name}.nii.gz"), CubeContract("ct", 24)) for name in ("ras", "lps")]
    assert torch.allclose(*cubes, atol=1e-5)


@pytest.mark.slow
def test_lung_volume_survives_preparation():
    """Trimming and resizing change the voxel size, which the cube's affine knows."""
    thorax = make_thorax(1, (96, 96, 96))
    cube = prepare_cube(MetaTensor(torch.from_numpy(thorax.hu)[None], affine=thorax.affine), CubeContract("ct", 64))
    found = measure(to_hu(cube[0].numpy()), voxel_size(cube))
    assert found["lung_ml"] == pytest.approx(thorax.truth["lung_ml"], rel=0.03)


def test_brain_cube():
    subject = make_subject(1, (64, 72, 60), 3.0, tumour=False)
    image = MetaTensor(torch.from_numpy(subject.brain * 100.0).float()[None], affine=subject.affine)
    cube = prepare_cube(image, CubeContract("t1", 32))
    assert cube.min() == -1 and cube.max() == 1
    ml = float((cube > 0).sum() * voxel_size(cube).prod() / 1000)
    assert ml == pytest.approx(subject.truth["brain_ml"], rel=0.05)


def test_contract_names_what_differs():
    with pytest.raises(DataError, match="size: 64 against 128"):
        CubeContract("ct", 64).require(CubeContract("ct", 128))
    CubeContract("ct", 64, window=[-1024, 600]).require(CubeContract("ct", 64))
    with pytest.raises(DataError, match="'pet' is unknown"):
        CubeContract("pet")


def test_cubes_of_a_manifest(tmp_path):
    manifest = simulated_thoraxes(dict(train=2), (32, 32, 32), folder=tmp_path)
    cubes = Cubes(manifest, CubeContract("ct", 16))
    sample = cubes[1]
    assert len(cubes) == 2 and sample["x"].shape == (1, 16, 16, 16) and sample["subject"] == "SIM00001"
    assert sample["x"].dtype == torch.float32 and torch.equal(cubes[1]["x"], sample["x"])
    with pytest.raises(DataError, match="no rows"):
        Cubes(manifest.select(split="test"), CubeContract("ct", 16))


def test_cubes_on_disk_are_the_same_to_16_bits(tmp_path):
    manifest = simulated_thoraxes(dict(train=3), (32, 32, 32), folder=tmp_path / "scans")
    cubes = Cubes(manifest, CubeContract("ct", 16))
    stored = cubes.on_disk(tmp_path / "cache", "key")
    assert len(stored) == 3 and stored.contract == cubes.contract
    for mine, theirs in zip((stored[i] for i in range(3)), (cubes[i] for i in range(3)), strict=True):
        assert mine["subject"] == theirs["subject"] and torch.equal(mine["spacing"], theirs["spacing"])
        assert mine["x"].dtype == torch.float32 and (mine["x"] - theirs["x"]).abs().max() <= 2 / (2**16 - 1) / 2 * 1.01
    manifest.scans()[0].path("ct").unlink()  # what is stored does not need the scans any more
    assert torch.equal(cubes.on_disk(tmp_path / "cache", "key")[0]["x"], stored[0]["x"])


def test_labels_of_cubes_are_read_as_labels(tmp_path):
    image = np.zeros((20, 24, 16), np.float32)
    image[4:16, 5:20, 3:12] = 100 + np.arange(12 * 15 * 9).reshape(12, 15, 9)
    write_volume(tmp_path / "t1.nii.gz", image, np.eye(4), "float32")
    table = pd.DataFrame([dict(subject="S", site="A", split="train", t1="t1.nii.gz", seg="seg.nii.gz")])
    for labels, wrong in ((0 * image, None), (4.0 * (image > 900), None), (3.9999 * (image > 900), "3.9999")):
        write_volume(tmp_path / "seg.nii.gz", labels, np.eye(4), "float32")
        cubes = LesionCubes(Manifest(table, tmp_path), CubeContract("t1", 16))
        if wrong:
            with pytest.raises(DataError, match=f"seg.nii.gz: .*{wrong}"):
                cubes[0]
        else:
            assert set(cubes[0]["seg"].unique().tolist()) == set(np.unique(labels).tolist())
    write_volume(tmp_path / "seg.nii.gz", 0 * image, np.diag([1.0, 1, 2, 1]), "float32")
    with pytest.raises(DataError, match="affines"):
        LesionCubes(Manifest(table, tmp_path), CubeContract("t1", 16))[0]
