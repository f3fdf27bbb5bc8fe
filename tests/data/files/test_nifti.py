"""NIfTI files: every variant of the format reads right, every fault gives one clear error, writes are atomic."""

import errno
import gzip
import os
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from medsynth_lib.data.files import nifti
from medsynth_lib.data.files.manifest import Scan
from medsynth_lib.data.files.nifti import DataError, read_case, read_volume, write_volume

SHAPE = (6, 7, 5)
AFFINE = np.array([[2.0, 0, 0, -10], [0, 1.5, 0, 4], [0, 0, 3, 7], [0, 0, 0, 1]])


def voxels(seed=0):
    return np.random.default_rng(seed).integers(1, 900, SHAPE).astype(np.int16)


def save(path, array, affine=AFFINE, header=None):
    nib.save(nib.Nifti1Image(array, affine, header), path)
    return path


def refused(call, *words):
    """The call raises DataError, whose one line holds all words."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"


# --- variants that must read right ---


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f8", ">f4", "u1"])
def test_types_and_byte_orders(tmp_path, dtype, ending):
    values = voxels() % 200
    header = nib.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(np.dtype(dtype).newbyteorder("="))
    path = save(tmp_path / f"v{ending}", values.astype(dtype), header=header)
    assert nib.load(path).header.endianness == (">" if dtype[0] == ">" else "<")
    volume = read_volume(path)
    assert volume.shape == (1, *SHAPE) and volume.dtype == torch.float32
    np.testing.assert_array_equal(volume[0].numpy(), values)
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE)


def test_slope_and_intercept(tmp_path):
    image = nib.Nifti1Image(voxels(), AFFINE)
    image.header.set_slope_inter(0.5, -3)  # kept by nibabel for the file, with data stored as (v + 3) / 0.5
    nib.save(image, tmp_path / "v.nii")
    raw = bytearray((tmp_path / "v.nii").read_bytes())
    assert np.frombuffer(raw[112:120], "<f4").tolist() == [0.5, -3]
    stored = np.frombuffer(raw[352:], "<i2").reshape(SHAPE, order="F")
    np.testing.assert_allclose(read_volume(tmp_path / "v.nii")[0].numpy(), stored * 0.5 - 3)
    assert not np.array_equal(stored * 0.5 - 3, stored)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
@pytest.mark.parametrize("tilt", [(0, 0, 0), (12, -7, 20)])
def test_orientation_is_kept_as_stored(tmp_path, codes, tilt):
    affine = np.eye(4)
    for axis, (to, sign) in enumerate(nib.orientations.axcodes2ornt(codes)):
        affine[:3, axis] = np.eye(3)[int(to)] * sign * (1 + axis)
    affine[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() @ affine[:3, :3]
    volume = read_volume(save(tmp_path / "v.nii.gz", voxels(), affine))
    np.testing.assert_array_equal(volume[0].numpy(), voxels())
    np.testing.assert_allclose(volume.affine.numpy(), affine, atol=1e-5)


def test_trailing_singleton_axis_is_accepted(tmp_path):
    assert read_volume(save(tmp_path / "v.nii", voxels()[..., None])).shape == (1, *SHAPE)


# --- faults ---


def test_missing_file(tmp_path):
    refused(lambda: read_volume(tmp_path / "no.nii"), "no.nii", "no such file")


@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated_gzip(tmp_path, part):
    path = save(tmp_path / "v.nii.gz", np.random.default_rng(0).integers(1, 9999, (20, 20, 20)).astype(np.int16))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    refused(lambda: read_volume(path), path, "truncated", "again")


def test_gzip_cut_inside_the_header(tmp_path):
    path = save(tmp_path / "v.nii.gz", voxels())
    path.write_bytes(path.read_bytes()[:40])
    refused(lambda: read_volume(path), path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [352, 352 + 100])
def test_header_without_all_its_data(tmp_path, kept, ending):
    short = save(tmp_path / "whole.nii", voxels()).read_bytes()[:kept]
    path = tmp_path / f"v{ending}"
    path.write_bytes(gzip.compress(short) if ending == ".nii.gz" else short)
    refused(lambda: read_volume(path), path, SHAPE, "again")


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.txt"])
def test_not_nifti(tmp_path, name):
    (tmp_path / name).write_text("this is a text file " * 40)
    refused(lambda: read_volume(tmp_path / name), name, "NIfTI")


def test_other_formats_are_refused_by_name(tmp_path):
    nib.save(nib.MGHImage(voxels(), AFFINE), tmp_path / "v.mgz")
    refused(lambda: read_volume(tmp_path / "v.mgz"), "v.mgz", "MGHImage", "convert")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_voxels_are_counted(tmp_path, value):
    array = voxels().astype(np.float32)
    array[0, 0, :3] = value
    refused(lambda: read_volume(save(tmp_path / "v.nii", array)), "v.nii", "3 of 210")


def test_4d(tmp_path):
    path = save(tmp_path / "v.nii", np.stack([voxels()] * 2, axis=-1))
    refused(lambda: read_volume(path), "v.nii", (*SHAPE, 2), "four_to_three")


def test_2d_and_colour(tmp_path):
    refused(lambda: read_volume(save(tmp_path / "flat.nii", voxels()[..., 0])), "flat.nii", SHAPE[:2])
    colour = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(lambda: read_volume(save(tmp_path / "rgb.nii", colour)), "rgb.nii", "real numbers")


def test_all_zero_is_refused_but_for_labels(tmp_path):
    path = save(tmp_path / "v.nii", np.zeros(SHAPE, np.int16))
    refused(lambda: read_volume(path), path, "210 voxels are zero")
    assert not read_volume(path, labels=True).any()


def test_unknown_label(tmp_path):
    array = np.zeros(SHAPE, np.uint8)
    array[1:5, 1, 1] = 1, 2, 3, 4
    path = save(tmp_path / "seg.nii", array)
    refused(lambda: read_volume(path, labels=True), path, "unknown labels [3.0]", (0, 1, 2, 4))
    array[3, 1, 1] = 0
    np.testing.assert_array_equal(read_volume(save(path, array), labels=True)[0].numpy(), array)


def test_singular_affine(tmp_path):
    affine = AFFINE.copy()
    affine[:3, 2] = affine[:3, 1]
    image = nib.Nifti1Image(voxels(), None)
    image.header.set_sform(affine, code=1)
    nib.save(image, tmp_path / "v.nii")
    refused(lambda: read_volume(tmp_path / "v.nii"), "v.nii", "singular", "sform")


# --- cases ---


def make_case(folder, **changes):
    for seed, name in enumerate(("flair", "t2", "t1")):
        save(folder / f"{name}.nii", voxels(seed))
    save(folder / "seg.nii", (voxels() % 2).astype(np.uint8))
    cells = {"subject": "S1", "site": "A"} | {k: f"{k}.nii" for k in ("flair", "t2", "t1", "seg")}
    return Scan(cells | changes, folder)


def test_case_holds_each_modality(tmp_path):
    case = read_case(make_case(tmp_path))
    assert list(case) == ["flair", "t2", "t1", "seg"]
    for seed, name in enumerate(("flair", "t2", "t1")):
        np.testing.assert_array_equal(case[name][0].numpy(), voxels(seed))
    assert "seg" not in read_case(make_case(tmp_path), labels=False)
    assert "seg" not in read_case(make_case(tmp_path, seg=""))


def test_labels_of_a_case_are_checked_as_labels(tmp_path):
    scan = make_case(tmp_path)
    save(tmp_path / "seg.nii", np.zeros(SHAPE, np.uint8))
    assert not read_case(scan)["seg"].any()
    save(tmp_path / "seg.nii", np.full(SHAPE, 3, np.uint8))
    refused(lambda: read_case(scan), tmp_path / "seg.nii", "unknown labels [3.0]")


@pytest.mark.parametrize("empty", ["", float("nan"), None])
def test_missing_modality_cell(tmp_path, empty):
    refused(lambda: read_case(make_case(tmp_path, t2=empty)), "S1", "site A", "no t2")


def test_missing_modality_file(tmp_path):
    scan = make_case(tmp_path)
    (tmp_path / "t1.nii").unlink()
    refused(lambda: read_case(scan), tmp_path / "t1.nii", "no such file")


def test_shapes_differ(tmp_path):
    scan = make_case(tmp_path)
    save(tmp_path / "t2.nii", voxels()[:, :-1])
    refused(lambda: read_case(scan), tmp_path / "flair.nii", tmp_path / "t2.nii", SHAPE, (6, 6, 5))


@pytest.mark.parametrize("entry, shift", [((0, 3), 0.01), ((1, 1), 0.0004), ((1, 2), 0.002)])  # small errors add up
def test_affines_differ(tmp_path, entry, shift):
    scan, affine = make_case(tmp_path), AFFINE.copy()
    affine[entry] += shift
    save(tmp_path / "t1.nii", voxels(), affine)
    refused(lambda: read_case(scan), tmp_path / "flair.nii", tmp_path / "t1.nii", affine[entry], "mm")


def test_affines_agree_within_tolerance(tmp_path):
    scan, affine = make_case(tmp_path), AFFINE.copy()
    affine[0, 3] += 5e-4
    save(tmp_path / "t1.nii", voxels(), affine)
    assert read_case(scan)["t1"].affine[0, 3] == pytest.approx(affine[0, 3], abs=1e-5)


# --- writing ---


def test_write_then_read(tmp_path):
    tilted = AFFINE.copy()
    tilted[:3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix() @ tilted[:3, :3]
    write_volume(tmp_path / "new" / "v.nii.gz", voxels() - 0.4, tilted)
    image = nib.load(tmp_path / "new" / "v.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels())
    assert image.get_data_dtype() == np.int16 and image.header.get_xyzt_units()[0] == "mm"
    assert image.header["sform_code"] == image.header["qform_code"] == 1
    np.testing.assert_allclose(image.get_sform(), tilted, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), tilted, atol=1e-5)


def test_write_accepts_what_read_returns(tmp_path):
    volume = read_volume(save(tmp_path / "a.nii", voxels()))
    write_volume(tmp_path / "b.nii", volume / 7, volume.affine, dtype="float32")
    torch.testing.assert_close(read_volume(tmp_path / "b.nii").as_tensor(), volume.as_tensor() / 7)


@pytest.mark.parametrize("dtype, value", [("int16", 40000), ("uint8", -1), ("uint8", 256), ("int16", 0.3)])
def test_values_that_do_not_fit(tmp_path, dtype, value):
    refused(lambda: write_volume(tmp_path / "v.nii", np.full(SHAPE, value), AFFINE, dtype), "v.nii", dtype, "float32")
    assert not list(tmp_path.iterdir())


def test_write_refuses_nan_and_4d(tmp_path):
    refused(lambda: write_volume(tmp_path / "v.nii", np.full(SHAPE, np.nan), AFFINE), "v.nii", "NaN")
    refused(lambda: write_volume(tmp_path / "v.nii", np.ones((2, *SHAPE)), AFFINE), "v.nii", (2, *SHAPE))


@pytest.mark.parametrize("name", ["v.NII.GZ", "v.NII", "v #1 {x}.nii.gz"])
def test_names_that_can_be_written(tmp_path, name):
    write_volume(tmp_path / name, voxels(), AFFINE)
    np.testing.assert_array_equal(read_volume(tmp_path / name)[0].numpy(), voxels())
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") == name.lower().endswith(".gz")


@pytest.mark.parametrize("name", ["v.mgz", "v", "v.nii.bz2", "v.img", "v.Nii"])
def test_other_endings_are_refused(tmp_path, name):
    refused(lambda: write_volume(tmp_path / name, voxels(), AFFINE), tmp_path / name, ".nii or .nii.gz")
    assert not list(tmp_path.iterdir())


def test_a_sheared_affine_is_written_once(tmp_path, capsys):
    """A qform holds no shear: beside an sform it would be a second opinion."""
    sheared = AFFINE.copy()
    sheared[0, 2] = 1
    write_volume(tmp_path / "v.nii.gz", voxels(), sheared)
    np.testing.assert_allclose(read_volume(tmp_path / "v.nii.gz").affine.numpy(), sheared)
    assert nib.load(tmp_path / "v.nii.gz").header["qform_code"] == 0 and capsys.readouterr().out == ""


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_an_affine_that_is_none_is_not_written(tmp_path, value):
    affine = AFFINE.copy()
    affine[0, 0] = value
    refused(lambda: write_volume(tmp_path / "v.nii", voxels(), affine), tmp_path / "v.nii", "affine is singular")


@pytest.mark.parametrize("owner, name", [(nib, "save"), (os, "replace")])
def test_disk_full_leaves_the_earlier_file(tmp_path, monkeypatch, owner, name):
    path = tmp_path / "v.nii"
    write_volume(path, voxels(), AFFINE)
    before = path.read_bytes()

    def full(image_or_path, target):
        if name == "save":
            target.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(owner, name, full)
    refused(lambda: write_volume(path, voxels(1), AFFINE), path, "No space left", "free disk space")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    refused(lambda: write_volume(tmp_path / "file" / "v.nii", voxels(), AFFINE), "v.nii", "cannot be written")


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(image, target):
        target.write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(nib, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_volume(tmp_path / "v.nii", voxels(), AFFINE)
    assert not list(tmp_path.iterdir())


def test_a_volume_larger_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    scan = make_case(tmp_path)
    monkeypatch.setattr(nifti.psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    refused(lambda: read_case(scan), "flair.nii", "GB of memory", "resample")


def test_what_was_packed_twice_or_is_a_web_page_is_told(tmp_path):
    write_volume(tmp_path / "a.nii.gz", np.ones((4, 4, 4)), np.eye(4))
    (tmp_path / "twice.nii.gz").write_bytes(gzip.compress((tmp_path / "a.nii.gz").read_bytes()))
    (tmp_path / "page.nii.gz").write_text("<!DOCTYPE html><html>sign in</html>" + " " * 400)
    for name, remedy in {"twice.nii.gz": "unpack it once", "page.nii.gz": "download it again"}.items():
        with pytest.raises(DataError, match=f"{name}: .*{remedy}"):
            read_volume(tmp_path / name)
