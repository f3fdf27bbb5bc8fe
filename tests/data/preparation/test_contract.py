"""Preprocessing: geometry that can be undone, normalisations with known invariances, aligned augmentation."""

import dataclasses

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from medsynth_lib import files
from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.files.nifti import DataError, write_volume
from medsynth_lib.data.preparation import crop
from medsynth_lib.data.preparation.contract import (
    NYUL_PERCENTILES,
    Contract,
    Geometry,
    normalise,
    nyul_landmarks,
    prepare,
    restore,
)
from medsynth_lib.data.preparation.pairs import PairedVolumes, adjust, augment

SMALL = Contract(size=(16, 16, 12))
TILT = (12, -7, 20)


def affine_of(codes="RAS", spacing=(1, 1, 1), tilt=(0, 0, 0)):
    """An affine whose axes point along `codes`, then tilted by Euler angles in degrees."""
    affine = np.eye(4)
    for axis, (to, sign) in enumerate(nib.orientations.axcodes2ornt(codes)):
        affine[:3, axis] = np.eye(3)[int(to)] * sign * spacing[axis]
    affine[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = 3.25, -20.5, 7
    return affine


def background(shape, box=SMALL.size):
    """All outside a central box, and a quarter of the voxels in it: no brain, as far as `prepare` can tell (1, x, y, z)."""
    return torch.from_numpy(outside(shape, box) | (np.indices((1, *shape)).sum(0) % 4 == 0))


def outside(shape, box):
    """What is not in a central box (1, x, y, z)."""
    mask = np.ones((1, *shape), bool)
    mask[0][tuple(slice(max(0, n // 2 - b // 2), n // 2 - b // 2 + b) for n, b in zip(shape, box, strict=True))] = False
    return mask


def make_case(shape=(20, 20, 14), affine=None, keys=("flair", "t2", "t1"), box=SMALL.size):
    """Random images, 0 in the `background` alone, and labels 0, 1, 2, 4 in the box."""
    rng = np.random.default_rng(0)
    affine = torch.from_numpy(affine_of() if affine is None else affine)
    case = {key: MetaTensor(torch.from_numpy(rng.uniform(1, 900, (1, *shape))).float(), affine=affine) for key in keys}
    for image in case.values():
        image[background(shape, box)] = 0
    labels = torch.from_numpy(rng.choice([0.0, 1, 2, 4], (1, *shape)) * ~outside(shape, box)).float()
    return case | {"seg": MetaTensor(labels, affine=affine)}


def brain():
    """A smooth random image (1, 16, 16, 12) in [100, 500], 0 outside a ball."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (16, 16, 12)), indexing="ij")
    image = 300 + 200 * np.sin(3 * x + 2 * y) * np.cos(2 * z)
    return torch.from_numpy(np.where(x**2 + y**2 + z**2 < 0.8, image, 0)).float()[None]


# --- contract ---


def test_paper_contract():
    paper = Contract.for_paper()
    assert (paper.size, paper.spacing, paper.normalisation) == ((192, 192, 144), (1, 1, 1), "minmax")
    assert paper.modalities == ("flair", "t2", "t1")
    assert Contract(target=None).modalities == ("flair", "t2")


def test_contract_round_trip(tmp_path):
    contract = Contract(normalisation="nyul", landmarks={k: [0.0, 0.4, 1.0] for k in ("flair", "t2", "t1")})
    contract.save(tmp_path / "contract.yaml")
    assert Contract.load(tmp_path / "contract.yaml") == contract
    assert [p.name for p in tmp_path.iterdir()] == ["contract.yaml"]
    assert Contract(size=[16, 16, 12]) == SMALL  # a profile's YAML gives lists


def test_contract_mismatch_names_fields_and_values():
    other = dataclasses.replace(SMALL, normalisation="zscore", spacing=(2.0, 2.0, 2.0))
    assert SMALL.check(SMALL) == [] and len(SMALL.check(other)) == 2
    SMALL.require(SMALL)
    with pytest.raises(DataError) as caught:
        SMALL.require(other)
    for word in ("normalisation", "'percentile'", "'zscore'", "spacing", "(1.0, 1.0, 1.0)", "(2.0, 2.0, 2.0)"):
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["", "just text", "size: [1, 2, 3]\n", "{broken: ["])
def test_unreadable_contract(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(DataError, match="c.yaml"):
        Contract.load(tmp_path / "c.yaml")


def test_impossible_contracts(tmp_path):
    with pytest.raises(DataError, match="'median' is unknown"):
        Contract(normalisation="median")
    with pytest.raises(DataError, match=r"no landmarks for \['flair', 't1'\]"):
        Contract(normalisation="nyul", landmarks={"t2": [0, 1]})
    with pytest.raises(DataError, match="none.yaml"):
        Contract.load(tmp_path / "none.yaml")


# --- geometry ---


def test_prepare_gives_what_it_states():
    sample = prepare(make_case(), SMALL)
    shapes = {key: tuple(value.shape) for key, value in sample.items()}
    assert shapes == {"x": (2, 16, 16, 12), "y": (1, 16, 16, 12), "mask": (1, 16, 16, 12), "seg": (1, 16, 16, 12)}
    assert sample["mask"].dtype == torch.bool and all(type(v) is torch.Tensor for v in sample.values())
    assert all(sample[k].dtype == torch.float32 for k in ("x", "y", "seg"))
    case = make_case()
    del case["t1"], case["seg"]
    assert set(prepare(case, SMALL)) == {"x", "mask"}


def test_crop_is_central_and_exact():
    case = make_case()
    sample = prepare(case, dataclasses.replace(SMALL, normalisation="minmax"))
    for channel, key in ((sample["x"][0], "flair"), (sample["x"][1], "t2"), (sample["y"][0], "t1")):
        centre = case[key].as_tensor()[0, 2:18, 2:18, 1:13]
        torch.testing.assert_close(channel, (centre - centre.min()) / (centre.max() - centre.min()))
    torch.testing.assert_close(sample["seg"][0], case["seg"].as_tensor()[0, 2:18, 2:18, 1:13], rtol=0, atol=0)


def test_small_scans_are_padded_with_background():
    sample = prepare(make_case((10, 16, 12)), SMALL)
    assert not sample["mask"][:, :3].any() and not sample["mask"][:, 13:].any()
    assert torch.equal(sample["mask"][:, 3:13], ~background((10, 16, 12)))
    assert not sample["x"][:, :3].any() and not sample["y"][:, 13:].any()


@pytest.mark.parametrize("codes, flips, order", [("LPS", (0, 1), (0, 1, 2)), ("PIR", (0, 1), (2, 0, 1))])
def test_orientation_becomes_ras(codes, flips, order):
    case = make_case((16, 16, 12) if codes == "LPS" else (16, 12, 16), affine_of(codes))
    expected = case["seg"].as_tensor()[0].flip(flips).permute(order)
    torch.testing.assert_close(prepare(case, SMALL)["seg"][0], expected, rtol=0, atol=0)


def test_mask_needs_all_inputs_but_never_the_target():
    case = make_case((16, 16, 12))
    case["flair"][0, 0], case["t2"][0, 1], case["t1"][0, 2] = 0, 0, 0
    mask = prepare(case, SMALL)["mask"]
    assert not mask[:, :2].any() and torch.equal(mask[:, 2:], ~background((16, 16, 12))[:, 2:])
    without_target = prepare({k: case[k] for k in ("flair", "t2")}, SMALL)
    torch.testing.assert_close(without_target["x"], prepare(case, SMALL)["x"], rtol=0, atol=0)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("tilt", [(0, 0, 0), TILT])
def test_restore_is_exact_inside_the_crop(codes, tilt):
    case = make_case((20, 18, 14), affine_of(codes, tilt=tilt), box=(10, 10, 10))
    case["t1"] = case["flair"]
    raw = dataclasses.replace(SMALL, normalisation="minmax", size=(14, 16, 10))
    sample = prepare(case, raw)
    back = restore(sample["seg"], case, raw)
    assert back.shape == case["flair"].shape and torch.equal(back.affine, case["flair"].affine)
    inside = restore(torch.ones(1, 14, 16, 10, dtype=torch.bool), case, raw).as_tensor()
    assert inside.dtype == torch.bool and inside.sum() == 14 * 16 * 10
    assert torch.equal(back.as_tensor()[inside], case["seg"].as_tensor()[inside])
    assert not back.as_tensor()[~inside].any()


@pytest.mark.parametrize("tilt", [(0, 0, 0), TILT])
def test_restore_undoes_resampling(tilt):
    affine = affine_of("LPS", (1, 2, 1.5), tilt)
    i, j, k = np.meshgrid(*map(np.arange, (24, 12, 16)), indexing="ij")
    ramp = torch.from_numpy(10 + i + 2.0 * j + 1.5 * k).float()[None]  # linear in mm: interpolation is exact inside
    case = {key: MetaTensor(ramp, affine=torch.from_numpy(affine)) for key in ("flair", "t2", "t1")}
    contract = Contract(size=(26, 26, 26), normalisation="minmax")  # padded, so the minimum is 0
    y = normalise(Geometry(contract, ["t1"])(case)["t1"], "minmax")
    slopes = [y[0, 6:20, 6:20, 6:20].diff(dim=axis) * ramp.max() for axis in range(3)]
    for slope, sign in zip(slopes, (-1, -1, 1), strict=True):  # 1 a mm along each axis, so 1 a voxel at 1 mm
        torch.testing.assert_close(slope, torch.full_like(slope, sign), rtol=0.02, atol=0)
    back = restore(y, case, contract)
    assert back.shape == ramp.shape and torch.equal(back.affine, case["flair"].affine)
    middle = (slice(None), slice(3, -3), slice(3, -3), slice(3, -3))
    ratio = (back.as_tensor() / ramp)[middle]  # one constant, from the normalisation; any shift makes it vary
    assert ratio.max() / ratio.min() < 1.001 and ratio.mean().item() == pytest.approx(1 / ramp.max().item(), rel=0.02)


def test_labels_are_resampled_without_new_values():
    case = make_case((12, 12, 8), affine_of(spacing=(1.5, 1.5, 1.5)), box=(9, 9, 7))
    assert set(prepare(case, SMALL)["seg"].unique().tolist()) == {0, 1, 2, 4}
    labels = prepare(case, SMALL)["seg"].to(torch.uint8)
    back = restore(labels, case, SMALL)
    assert back.dtype == torch.uint8 and set(back.unique().tolist()) <= {0, 1, 2, 4}


def test_restore_refuses_another_size():
    with pytest.raises(DataError, match=r"\(1, 8, 8, 8\).*\(1, 16, 16, 12\)"):
        restore(torch.zeros(1, 8, 8, 8), make_case(), SMALL)


def test_prepare_names_what_is_missing():
    case = make_case()
    case["flair"].meta["filename_or_obj"] = "flair.nii"
    with pytest.raises(DataError, match=r"inputs \['t2'\]"):
        prepare({k: v for k, v in case.items() if k != "t2"}, SMALL)
    case["flair"][:, :10], case["t2"][:, 10:] = 0, 0
    with pytest.raises(DataError, match="flair.nii: no voxel"):
        prepare(case, SMALL)
    constant = make_case((16, 16, 12))
    constant["t1"][constant["t1"] != 0] = 7
    constant["t1"].meta["filename_or_obj"] = "t1.nii"
    with pytest.raises(DataError, match="t1.nii: .* 7; an image without contrast"):
        prepare(constant, SMALL)


@pytest.mark.parametrize("key", ["flair", "t2", "t1"])
def test_pairs_with_skull_or_another_background_are_refused(key):
    case = make_case()
    case[key][case[key] == 0] = 20
    case[key].meta["filename_or_obj"] = f"{key}.nii"
    with pytest.raises(DataError, match=f"{key}.nii: 100% of the voxels are not 0.* lowest is (1|20).*SynthStrip"):
        prepare(case, SMALL)
    if key == "t1":
        prepare(case, dataclasses.replace(SMALL, target=None))  # which adaptation must not look at


# --- normalisation ---


@pytest.mark.parametrize("method", ["minmax", "percentile", "zscore", "nyul"])
def test_a_positive_gain_changes_nothing(method):
    marks = [0, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7, 0.8, 0.9, 1]
    out = normalise(brain(), method, landmarks=marks)
    torch.testing.assert_close(normalise(brain() * 3.7, method, landmarks=marks), out, atol=1e-5, rtol=0)
    assert not out[brain() == 0].any() and out.dtype == torch.float32
    if method == "zscore":
        inside = out[brain() != 0]
        assert abs(inside.mean()) < 1e-5 and inside.std(unbiased=False) == pytest.approx(1, abs=1e-5)
    else:
        assert out.min() == 0 and out.max() == 1


@pytest.mark.parametrize("method", ["percentile", "zscore", "nyul"])
def test_an_offset_of_the_brain_changes_nothing_but_minmax(method):
    marks = np.linspace(0, 1, 11).tolist()
    shifted = torch.where(brain() != 0, brain() + 250, 0)
    torch.testing.assert_close(
        normalise(shifted, method, landmarks=marks), normalise(brain(), method, landmarks=marks), atol=1e-5, rtol=0
    )
    assert (normalise(shifted, "minmax") - normalise(brain(), "minmax")).abs().max() > 0.1


def test_one_bright_voxel_breaks_minmax_but_not_percentiles():
    bright = brain()
    bright[0, 8, 8, 6] = 10 * brain().max()
    rest = brain() != 0
    rest[0, 8, 8, 6] = False
    change = {
        method: (normalise(bright, method) - normalise(brain(), method))[rest].abs().median()
        for method in ("minmax", "percentile")
    }
    assert normalise(bright, "minmax")[rest].max() == pytest.approx(0.1, abs=1e-4)
    assert normalise(bright, "percentile")[rest].max() == 1
    assert change["minmax"] > 0.1 and change["percentile"] < 0.01


def test_percentiles_are_those_of_the_brain():
    values = torch.arange(1.0, 1002)
    volume = torch.cat([torch.zeros(5000), values]).reshape(1, -1, 1, 1)
    out = normalise(volume, "percentile", percentiles=(10, 90)).flatten()[5000:]
    torch.testing.assert_close(out, ((values - 101) / 800).clip(0, 1))


def test_nyul_maps_percentiles_onto_the_standard_scale():
    volumes = [brain(), brain() ** 2, torch.where(brain() != 0, 700 - brain(), 0)]
    marks = nyul_landmarks(volumes)
    assert len(marks) == 11 and marks[0] == 0 and marks[-1] == 1 and np.all(np.diff(marks) > 0)
    for volume in volumes:
        out = normalise(volume, "nyul", landmarks=marks)[volume != 0].numpy()
        np.testing.assert_allclose(np.percentile(out, NYUL_PERCENTILES), marks, atol=0.02)
    one = nyul_landmarks([brain()])
    linear = (brain() - np.percentile(brain()[brain() != 0], 1)) / np.ptp(np.percentile(brain()[brain() != 0], (1, 99)))
    torch.testing.assert_close(
        normalise(brain(), "nyul", landmarks=one)[brain() != 0],
        linear.clip(0, 1)[brain() != 0].float(),
        atol=1e-4,
        rtol=0,
    )


def test_prepare_uses_each_modalitys_landmarks():
    marks = {key: np.linspace(0, 1, 11) ** power for key, power in (("flair", 1), ("t2", 2), ("t1", 3))}
    contract = dataclasses.replace(SMALL, normalisation="nyul", landmarks={k: v.tolist() for k, v in marks.items()})
    sample, case = prepare(make_case((16, 16, 12)), contract), make_case((16, 16, 12))
    for channel, key in ((sample["x"][:1], "flair"), (sample["x"][1:], "t2"), (sample["y"], "t1")):
        torch.testing.assert_close(channel, normalise(case[key], "nyul", landmarks=marks[key]))


def test_nothing_to_normalise():
    for method in ("minmax", "percentile", "zscore", "nyul"):
        with pytest.raises(DataError, match="zero"):
            normalise(torch.zeros(1, 4, 4, 4), method)
        with pytest.raises(DataError, match="without contrast"):
            normalise(torch.full((1, 4, 4, 4), 5.0), method, landmarks=np.linspace(0, 1, 11))
    with pytest.raises(DataError, match="'max' is unknown"):
        normalise(brain(), "max")
    with pytest.raises(DataError, match="no volumes"):
        nyul_landmarks([])


# --- augmentation ---


def make_sample(shape=(16, 16, 12)):
    """x and y equal and every voxel different, so that any misalignment shows."""
    y = torch.linspace(0.2, 0.8, int(np.prod(shape))).reshape(1, *shape)
    mask = torch.ones(1, *shape, dtype=torch.bool)
    mask[:, :2] = False
    return {"x": torch.cat([y, y**2]), "y": y, "mask": mask, "seg": (y > 0.5).float() * 4, "subject": "S1"}


def test_everything_turns_together_and_the_target_keeps_its_intensities():
    for seed in range(40):
        sample, before = make_sample(), make_sample()
        out = augment(sample, torch.Generator().manual_seed(seed), spatial=0.7, intensity=0.7)
        assert torch.equal(out["seg"], (out["y"] > 0.5).float() * 4)
        assert torch.equal(out["mask"], out["y"] > before["y"][0, 1].max())
        assert torch.equal(out["y"].flatten().sort().values, before["y"].flatten())
        outside = ~out["mask"][0]
        assert torch.equal(out["x"][0][outside], out["y"][0][outside])  # background keeps its values too
        assert out["subject"] == "S1" and all(torch.equal(sample[k], before[k]) for k in ("x", "y", "mask", "seg"))
        order = [c[out["mask"][0]].argsort() for c in (out["x"][0], out["y"][0])]
        unclipped = (out["x"][0][out["mask"][0]] > 0) & (out["x"][0][out["mask"][0]] < 1)
        assert not unclipped.all() or torch.equal(*order)


def test_all_sixteen_positions_of_a_square_occur_but_only_eight_of_an_oblong():
    for shape, count in (((4, 4, 3), 16), ((4, 6, 3), 8)):
        seen = {
            tuple(augment(make_sample(shape), torch.Generator().manual_seed(s))["y"].flatten().tolist())
            for s in range(400)
        }
        assert len(seen) == count


def test_factors_lie_in_the_papers_range_and_fill_it():
    factors = []
    for seed in range(400):
        sample = make_sample((4, 4, 3))
        sample["mask"][:] = True
        sample["x"] = 0.30 + 0.02 * sample["x"]  # narrow, so that nothing is clipped
        out = augment(sample, torch.Generator().manual_seed(seed), spatial=1, intensity=1)["x"]
        brightness = (out.mean((1, 2, 3)) / sample["x"].mean((1, 2, 3))).tolist()
        contrast = (out.std((1, 2, 3)) / sample["x"].std((1, 2, 3))).tolist()
        assert brightness[0] == pytest.approx(brightness[1], rel=1e-3)  # one factor a sample
        factors.append((brightness[0], contrast[0] / brightness[0]))
    factors = np.array(factors)
    assert factors.min() > 0.3 - 1e-3 and factors.max() <= 1.5 + 1e-3
    assert (factors.min(0) < 0.33).all() and (factors.max(0) > 1.47).all()
    np.testing.assert_allclose(factors.mean(0), 0.9, atol=0.06)
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.15


def test_adjust_is_contrast_about_the_brain_mean_then_brightness():
    x = torch.tensor([0.2, 0.4, 0.6, 0.9]).reshape(1, 4, 1, 1)
    mask = torch.tensor([True, True, True, False]).reshape(1, 4, 1, 1)
    torch.testing.assert_close(adjust(x, mask, 0.5, 1.5).flatten(), torch.tensor([0.45, 0.6, 0.75, 0.9]))
    assert adjust(x + 0.4, mask, 1.5, 1.5).flatten()[2] == 1 and adjust(x * 0.2, mask, 3, 1).min() == 0
    with pytest.raises(DataError, match="zscore"):
        adjust(x - 0.5, mask, 1, 1)


def test_the_generator_is_all_the_randomness():
    first, second = (torch.Generator().manual_seed(7) for _ in range(2))
    torch.manual_seed(1)
    runs = [augment(make_sample(), first)["x"] for _ in range(6)]
    state = first.get_state()
    later = augment(make_sample(), first)["x"]
    torch.manual_seed(2)
    assert all(torch.equal(run, augment(make_sample(), second)["x"]) for run in runs)
    second.set_state(state)
    assert torch.equal(augment(make_sample(), second)["x"], later)
    assert not all(torch.equal(runs[0], run) for run in runs[1:])


def test_probability_zero_changes_nothing():
    for seed in range(20):
        out = augment(make_sample(), torch.Generator().manual_seed(seed), spatial=0, intensity=0)
        assert all(torch.equal(out[k], v) for k, v in make_sample().items() if k != "subject")


# --- data set ---


@pytest.fixture
def manifest(tmp_path):
    rows = []
    for number in range(3):
        row = {"subject": f"S{number}", "site": "A", "split": "train"}
        for key, volume in make_case((16, 16, 12)).items():
            row[key] = f"S{number}_{key}.nii.gz"
            write_volume(
                tmp_path / row[key],
                volume if key == "seg" else volume ** (1 + number / 10),  # a background of 0, and other contrast
                volume.affine.numpy(),
            )
        rows.append(row)
    return Manifest(pd.DataFrame(rows), tmp_path)


def test_data_set_reads_once_and_is_filtered_by_rows(manifest, tmp_path):
    data = PairedVolumes(manifest.select(subject=("S1", "S2")), SMALL)
    assert len(data) == 2 and data[0]["subject"] == "S1" and data[1]["site"] == "A"
    sample = data[0]
    sample["x"] = None  # a caller's dictionary is its own
    for path in tmp_path.iterdir():
        path.unlink()
    assert data[0]["x"].shape == (2, 16, 16, 12) and type(data[0]["y"]) is torch.Tensor


def test_preload_reads_all_and_agrees_with_lazy_reading(manifest, tmp_path):
    lazy, eager = PairedVolumes(manifest, SMALL), PairedVolumes(manifest, SMALL).preload(threads=3)
    expected = [lazy[i] for i in range(3)]
    for path in tmp_path.iterdir():
        path.unlink()
    for i in range(3):
        assert eager[i]["subject"] == expected[i]["subject"]
        assert all(torch.equal(eager[i][k], expected[i][k]) for k in ("x", "y", "mask", "seg"))


def test_data_set_feeds_a_loader(manifest):
    batches = list(torch.utils.data.DataLoader(PairedVolumes(manifest, SMALL), batch_size=3))
    assert batches[0]["x"].shape == (3, 2, 16, 16, 12) and batches[0]["subject"] == ["S0", "S1", "S2"]


def test_inputs_only_never_opens_the_target(manifest, tmp_path):
    for path in tmp_path.glob("*_t1.nii.gz"):
        path.unlink()
    assert "y" not in PairedVolumes(manifest, dataclasses.replace(SMALL, target=None))[0]
    with pytest.raises(DataError, match="S0_t1.nii.gz: no such file"):
        PairedVolumes(manifest, SMALL)[0]
    with pytest.raises(DataError, match="_t1.nii.gz: no such file"):
        PairedVolumes(manifest, SMALL).preload()


def test_empty_data_set(manifest):
    with pytest.raises(DataError, match="no rows"):
        PairedVolumes(manifest.select(site="B"), SMALL)


def test_lessons_say_what_the_crop_cuts_off_a_real_brain(manifest, capsys, monkeypatch):
    monkeypatch.setattr(files, "SAID", set())
    tight = dataclasses.replace(SMALL, size=(16, 16, 11))  # one slice of the brain too few
    monkeypatch.setattr(crop, "MOST", 0.2)
    PairedVolumes(manifest, tight).preload()
    said = capsys.readouterr().out
    assert said.count("_flair.nii.gz: the crop of 16 x 16 x 11 mm cuts off") == 1 and "1 of its 12 mm along z" in said
    monkeypatch.setattr(files, "SAID", set())
    PairedVolumes(manifest, SMALL).preload()
    assert "cuts off" not in capsys.readouterr().out
