"""Where the crop lies: a whole brain stays whole wherever it is, comes back exactly, and is refused where it does not fit."""

import dataclasses

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from test_contract import affine_of

from medsynth_lib.data.preparation.contract import Contract, prepare, restore
from medsynth_lib.data.preparation.crop import brain_window, middle_window
from medsynth_lib.files import DataError

SMALL = Contract(size=(16, 16, 12), normalisation="minmax")
KEYS = ("flair", "t2", "t1")


def case_of(shape, low, extent, affine=None, spacing=1.0):
    """A box of distinct values at `low`, of `extent` voxels, in an empty field of view; labels in its lowest corner."""
    affine = np.diag([*np.broadcast_to(spacing, 3), 1.0]) if affine is None else affine
    box = tuple(slice(a, a + n) for a, n in zip(low, extent, strict=True))
    image, labels = torch.zeros(1, *shape), torch.zeros(1, *shape)
    image[0][box] = torch.arange(1.0, np.prod(extent) + 1).reshape(extent)
    labels[0][tuple(slice(a, a + 2) for a in low)] = 4
    made = {key: MetaTensor(image.clone(), affine=torch.from_numpy(affine)) for key in KEYS}
    for key, volume in made.items():
        volume.meta["filename_or_obj"] = f"{key}.nii"
    return made | {"seg": MetaTensor(labels, affine=torch.from_numpy(affine), meta={"filename_or_obj": "seg.nii"})}


@pytest.mark.parametrize("shape", [(40, 41, 45), (16, 33, 60), (9, 40, 12)])
@pytest.mark.parametrize("place", ["low", "middle", "high"])
def test_a_whole_brain_stays_whole_wherever_it_is(shape, place):
    extent = tuple(min(n, e) for n, e in zip(shape, (9, 15, 11), strict=True))
    room = np.subtract(shape, extent)
    low = dict(low=0 * room, middle=room // 2, high=room)[place]
    case = case_of(shape, low.tolist(), extent)
    sample = prepare(case, SMALL)
    assert sample["mask"].sum() == np.prod(extent)
    assert sample["seg"].sum() == 4 * 2**3  # labels travel with the brain
    back = restore(sample["seg"].to(torch.uint8), case, SMALL)
    assert torch.equal(back.as_tensor(), case["seg"].as_tensor().to(torch.uint8))
    image = restore(sample["y"], case, SMALL).as_tensor() * np.prod(extent)
    torch.testing.assert_close(image, case["t1"].as_tensor(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL", "RSP"])
@pytest.mark.parametrize("tilt", [(0, 0, 0), (12, -7, 20)])
def test_restore_undoes_a_crop_that_moved_along_permuted_flipped_and_tilted_axes(codes, tilt):
    case = case_of((37, 44, 41), (1, 27, 30), (10, 11, 9), affine_of(codes, tilt=tilt))
    sample = prepare(case, SMALL)
    assert sample["mask"].sum() == 10 * 11 * 9
    back = restore(sample["seg"], case, SMALL)
    assert torch.equal(back.as_tensor(), case["seg"].as_tensor()) and torch.equal(back.affine, case["flair"].affine)
    inside = restore(sample["mask"], case, SMALL).as_tensor()
    assert torch.equal(inside, case["t1"].as_tensor() != 0)


@pytest.mark.parametrize("codes", ["RAS", "PIL"])
def test_restore_undoes_a_moved_crop_of_anisotropic_voxels(codes):
    spacing = (0.5, 1.5, 2.0)
    case = case_of((70, 31, 23), (45, 22, 1), (20, 7, 4), affine_of(codes, spacing, (5, 3, -8)))
    sample = prepare(case, SMALL)
    inside = restore(sample["mask"], case, SMALL).as_tensor()
    truth = case["t1"].as_tensor() != 0
    assert inside[truth].float().mean() > 0.9  # the rest lies at the rim
    first, second = (np.argwhere(v[0].numpy()).mean(0) * spacing for v in (inside, truth))
    assert (
        np.abs(first - second) <= np.maximum(spacing, 1) / 2
    ).all()  # mm: at most one slice more or less, at one end
    assert sample["seg"].unique().tolist() == [0, 4]


def test_the_crop_moves_as_little_as_it_must():
    brain = torch.zeros(60, 60, 60, dtype=torch.bool)
    brain[20:30, 2:12, 45:55] = True
    window = brain_window(brain, (20, 20, 20), (1, 1, 1))
    assert [part.start for part in window] == [20, 2, 35]
    assert middle_window(brain.shape, (20, 20, 20))[0] == window[0]


def test_a_field_of_view_like_that_of_brats_is_cropped_in_the_middle():
    brain = torch.zeros(240, 240, 155, dtype=torch.bool)
    brain[50:190, 30:200, 3:150] = True  # the lowest two slices and the highest are cut off: 2 %
    assert brain_window(brain, (192, 192, 144), (1, 1, 1)) == (slice(24, 216), slice(24, 216), slice(5, 149))
    brain[:, :, :12] = False  # now all fits, and the middle would cut off as little
    brain[50:190, 30:200, 151:155] = True  # 3 %
    assert brain_window(brain, (192, 192, 144), (1, 1, 1))[2] == slice(11, 155)


def test_a_brain_that_does_not_fit_is_refused_with_what_would_be_lost():
    case = case_of((40, 40, 60), (12, 12, 20), (16, 16, 24))
    with pytest.raises(
        DataError, match=r"flair.nii: .*16 x 16 x 12 mm cuts off 50 % .* 12 of its 24 mm along z.*larger"
    ):
        prepare(case, SMALL)
    prepare(case, dataclasses.replace(SMALL, size=(16, 16, 24)))


def test_a_little_that_does_not_fit_is_said(capsys):
    case = case_of((40, 40, 60), (12, 12, 30), (16, 16, 12))
    for key in KEYS:
        case[key].meta["filename_or_obj"] = f"stem_{key}.nii"
        case[key][0, 16:20, 16:20, 29] = 5  # a stem below the brain
    sample = prepare(case, SMALL)
    assert sample["mask"].sum() == 16 * 16 * 12
    assert "stem_flair.nii: the crop of 16 x 16 x 12 mm cuts off 0.52 % of the brain, 1 of its 13 mm along z" in (
        capsys.readouterr().out
    )


def test_labels_outside_the_crop_are_refused():
    case = case_of((40, 40, 60), (12, 12, 10), (16, 16, 12))
    case["seg"][0, :, :, 50:] = 4
    with pytest.raises(DataError, match=r"seg.nii: 100% of the labelled voxels lie outside the crop"):
        prepare(case, SMALL)


def test_all_contracts_with_flair_crop_alike():
    case = case_of((40, 40, 60), (12, 12, 41), (16, 16, 10))
    case["t1ce"] = MetaTensor(case["t1"].clone(), affine=case["t1"].affine)
    case["t1ce"][..., 46:] = 0  # a smaller brain would pull the crop elsewhere
    two, four = (
        dataclasses.replace(SMALL, inputs=inputs) for inputs in (("flair", "t2"), ("t1ce", "t2", "flair", "t1"))
    )
    four = dataclasses.replace(four, target=None)
    assert torch.equal(prepare(case, two)["seg"], prepare(case, four)["seg"])
    assert torch.equal(prepare(case, two)["y"][0], prepare(case, four)["x"][3])


@pytest.mark.parametrize("value", [3.9999, -1.0, 0.5])
def test_labels_are_whole_numbers(value):
    case = case_of((20, 20, 20), (5, 5, 5), (6, 6, 6))
    case["seg"][0, 6, 6, 6] = value
    with pytest.raises(DataError, match=rf"seg.nii: {value:g} is no label.*nearest"):
        prepare(case, SMALL)
    case["seg"][:] = 0  # no tumour is an answer, too
    assert not prepare(case, SMALL)["seg"].any()


def test_grids_that_cannot_be_resampled_are_refused_before_memory_is_asked_for():
    with pytest.raises(
        DataError, match=r"flair.nii: 900 x 900 x 900 mm are 729.0 billion voxels of 0.1 x 0.1 x 0.1 mm"
    ):
        prepare(case_of((30, 30, 30), (5, 5, 5), (6, 6, 6), spacing=30.0), Contract(spacing=(0.1,) * 3))
    with pytest.raises(DataError, match=r"flair.nii: \(30, 30, 1\) voxels are one slice"):
        prepare(case_of((30, 30, 1), (5, 5, 0), (6, 6, 1)), SMALL)


def test_thick_slices_become_cubic_voxels_of_the_same_brain():
    case = case_of((60, 60, 8), (20, 20, 2), (12, 12, 3), spacing=(1, 1, 6))
    sample = prepare(case, Contract(size=(40, 40, 40)))
    used = np.ptp(np.argwhere(sample["mask"][0].numpy()), axis=0) + 1
    assert (
        used[:2].tolist() == [12, 12] and 18 <= used[2] <= 24
    )  # mm; linear interpolation reaches into the next slices
