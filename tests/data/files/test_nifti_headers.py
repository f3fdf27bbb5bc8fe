"""Headers: one orientation, one unit, one scaling, one type. What contradicts itself is refused or said, never guessed."""

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medsynth_lib import files
from medsynth_lib.data.files.nifti import read_header, read_volume
from medsynth_lib.files import DataError

VALUES = np.arange(1, 121, dtype=np.int16).reshape(4, 5, 6)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 1.5, 0, -4], [0, 0, 3, 7], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(files, "SAID", set())


def save(path, sform=AFFINE, qform=None, codes=(1, 0), kind=nib.Nifti1Image, **fields):
    """A file whose header has these forms, codes and fields, as stored."""
    image = kind(VALUES, sform if qform is None else qform)
    header = image.header
    header.set_qform(sform if qform is None else qform, 1)
    header.set_sform(sform, 1)
    header["sform_code"], header["qform_code"] = codes
    header.set_xyzt_units("mm")
    block = kind.header_class(header.binaryblock, check=False)
    block["scl_slope"], block["scl_inter"], block["vox_offset"] = 1, 0, kind.header_class.single_vox_offset
    for name, value in fields.items():
        field, _, index = name.partition("_at_")
        if index:
            block[field][int(index)] = value
        else:
            block[field] = value
    path.write_bytes(block.binaryblock + bytes(4) + VALUES.tobytes(order="F"))
    return path


def refused(path, *words):
    """Reading gives one line that holds all words, whether voxels are read or the header alone."""
    for read in (read_volume, read_header):
        with pytest.raises(DataError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and "\n" not in message and message.endswith((".", ").")), message
        for word in words:
            assert str(word) in message, f"{word!r} is not in {message!r}"


def turned(degrees, axis="z"):
    affine = AFFINE.copy()
    affine[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix() @ affine[:3, :3]
    return affine


# --- orientation ---


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (2, 1), (4, 0), (3, 2), (5, 5)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_one_geometry_is_read_in_silence(tmp_path, codes, kind, capsys):
    volume = read_volume(save(tmp_path / "a.nii", codes=codes, kind=kind))
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-5)
    np.testing.assert_array_equal(volume[0].numpy(), VALUES)
    assert capsys.readouterr() == ("", "")


def test_without_codes_left_and_right_are_not_known(tmp_path):
    refused(save(tmp_path / "a.nii", codes=(0, 0)), "sform_code and qform_code are 0", "left and right", "set_sform")


@pytest.mark.parametrize("codes", [(6, 0), (-1, 1), (0, 256), (99, 99)])
def test_codes_that_nifti_does_not_know(tmp_path, codes):
    refused(save(tmp_path / "a.nii", codes=codes), "form_code", max(codes, key=abs), "0 to 5")


@pytest.mark.parametrize("degrees, axis", [(180, "z"), (90, "x"), (40, "y")])
def test_two_orientations_are_refused(tmp_path, degrees, axis):
    refused(save(tmp_path / "a.nii", AFFINE, turned(degrees, axis), codes=(1, 1)), "two orientations", "LAS", "alike")


def test_a_mirrored_qform_is_refused(tmp_path):
    mirrored = AFFINE * [-1, 1, 1, 1]
    path = save(tmp_path / "a.nii", AFFINE, mirrored, codes=(1, 1))
    refused(path, "two orientations", "LAS", "RAS")
    for codes, affine in {(1, 0): AFFINE, (0, 1): mirrored}.items():  # the form without a code does not count
        save(path, AFFINE, mirrored, codes=codes)
        np.testing.assert_allclose(read_volume(path).affine.numpy()[:, :3], affine[:, :3], atol=1e-5)


def test_a_small_difference_is_said_once_and_the_sform_is_used(tmp_path, capsys):
    moved = turned(5)
    moved[2, 3] += 2
    for name in ("a.nii", "b.nii"):
        volume = read_volume(save(tmp_path / name, AFFINE, moved, codes=(2, 1)))
        np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-5)
    line = capsys.readouterr().out
    corner = np.linalg.norm((AFFINE - moved)[:3] @ [3, 4, 5, 1])
    assert line.count("\n") == 1 and "a.nii: sform and qform differ by up to" in line and "sform is used" in line
    assert float(line.split("up to ")[1].split()[0]) == pytest.approx(corner, abs=0.06)


def test_rounding_between_sform_and_qform_is_not_said(tmp_path, capsys):
    for degrees in (0.01, 12, 179.99, 180):
        affine = turned(degrees)
        np.testing.assert_allclose(
            read_volume(save(tmp_path / "a.nii", affine, codes=(1, 1))).affine, affine, atol=1e-3
        )
    assert capsys.readouterr().out == ""


# --- sizes and units ---


@pytest.mark.parametrize("unit, factor, mm", [("micron", 1e3, "0.001"), ("meter", 1e-3, "1000")])
def test_other_units_are_refused_with_the_factor(tmp_path, unit, factor, mm):
    affine = np.diag([8 * factor] * 3 + [1])
    code = dict(meter=1, micron=3)[unit]
    name = "metre" if unit == "meter" else unit
    for xyzt in (code, code + 8):  # with seconds
        refused(save(tmp_path / "a.nii", affine, xyzt_units=xyzt), name, "would be 8 x 8 x 8 mm", f"by {mm}")


def test_no_unit_is_mm_where_the_sizes_are_those_of_a_scan(tmp_path):
    for code in (0, 2, 10):
        assert read_volume(save(tmp_path / "a.nii", xyzt_units=code)).affine[1, 1] == 1.5
    for factor in (1e-3, 1e3):
        refused(save(tmp_path / "a.nii", AFFINE @ np.diag([factor] * 3 + [1]), xyzt_units=0), "none of a person", "mm")
        refused(save(tmp_path / "a.nii", AFFINE @ np.diag([factor] * 3 + [1])), "none of a person", "mm")


@pytest.mark.parametrize("code", [4, 5, 6, 7])
def test_units_that_nifti_does_not_know(tmp_path, code):
    refused(save(tmp_path / "a.nii", xyzt_units=code), f"code {code}", "mm")


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("size", [0, -1.5, np.nan, np.inf])
@pytest.mark.parametrize("codes", [(1, 0), (0, 1)])
def test_voxel_sizes_that_are_none(tmp_path, axis, size, codes):
    refused(save(tmp_path / "a.nii", codes=codes, **{f"pixdim_at_{axis}": size}), "pixdim", size, "mm")


def test_sizes_that_disagree_with_the_affine(tmp_path, capsys):
    refused(save(tmp_path / "a.nii", pixdim_at_2=3), "2 x 3 x 3 mm by pixdim", "2 x 1.5 x 3 mm by the affine")
    volume = read_volume(save(tmp_path / "b.nii", pixdim_at_2=1.56))
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE, atol=1e-5)
    assert "b.nii: voxel sizes are 2 x 1.56 x 3 mm by pixdim" in capsys.readouterr().out


@pytest.mark.parametrize(
    "fields", [dict(quatern_b=2), dict(quatern_c=np.nan), dict(pixdim_at_0=3), dict(qoffset_x=np.inf)]
)
def test_a_qform_that_is_no_rotation(tmp_path, fields):
    refused(save(tmp_path / "a.nii", codes=(0, 1), **fields), "qform")


@pytest.mark.parametrize(
    "fields", [dict(quatern_b=2), dict(quatern_c=np.nan), dict(pixdim_at_0=3), dict(qoffset_x=np.inf)]
)
def test_a_qform_that_is_no_rotation_beside_an_sform(tmp_path, fields):
    refused(save(tmp_path / "a.nii", codes=(1, 1), **fields), "qform")
    read_volume(save(tmp_path / "a.nii", codes=(1, 0), **fields))  # without a code it says nothing


def test_an_unset_handedness_stands_for_one(tmp_path):
    affine = np.abs(AFFINE)
    volume = read_volume(save(tmp_path / "a.nii", affine, codes=(0, 1), pixdim_at_0=0))
    np.testing.assert_allclose(volume.affine.numpy(), affine, atol=1e-5)


def test_an_sform_that_is_singular(tmp_path):
    refused(save(tmp_path / "a.nii", srow_x=[0, 0, 0, 0]), "singular", "sform")
    refused(save(tmp_path / "a.nii", srow_x=[0, 0, np.nan, 0]), "not finite", "sform")


# --- values ---


@pytest.mark.parametrize(
    "slope, offset", [(np.nan, 0), (np.inf, 0), (1, np.nan), (1, -np.inf), (0, -1024), (np.nan, np.nan)]
)
def test_a_scaling_without_sense(tmp_path, slope, offset):
    refused(save(tmp_path / "a.nii", scl_slope=slope, scl_inter=offset), "scl_slope", f"{slope:g}", f"{offset:g}")


@pytest.mark.parametrize("slope, offset, factor", [(0, 0, 1), (1, 0, 1), (2, -3, 2), (-1, 0, -1), (0.5, 1, 0.5)])
def test_a_scaling_is_applied(tmp_path, slope, offset, factor):
    volume = read_volume(save(tmp_path / "a.nii", scl_slope=slope, scl_inter=offset))
    np.testing.assert_array_equal(volume[0].numpy(), VALUES * factor + offset)


@pytest.mark.parametrize("code, bits, words", [(32, 64, ("complex64", "real")), (128, 24, ("real numbers",)),
                                               (2304, 32, ("real numbers",)), (1792, 128, ("complex128",)), (1, 1, ("type",)),
                                               (0, 0, ("type",)), (5, 16, ("data type 5",)), (4, 8, ("int16", "8 bits")),
                                               (2, 16, ("uint8", "16 bits"))])  # fmt: skip
def test_types_that_are_no_numbers(tmp_path, code, bits, words):
    refused(save(tmp_path / "a.nii", datatype=code, bitpix=bits), *words)


@pytest.mark.parametrize("fields", [dict(dim_at_0=0), dict(dim_at_0=8), dict(dim_at_0=-1), dict(dim_at_1=0), dict(dim_at_3=-6),
                                    dict(sizeof_hdr=340), dict(vox_offset=100), dict(vox_offset=-352),
                                    dict(vox_offset=np.nan), dict(vox_offset=np.inf)])  # fmt: skip
def test_a_layout_that_is_not_possible(tmp_path, fields):
    refused(save(tmp_path / "a.nii", **fields))


@pytest.mark.parametrize("fields", [dict(dim_at_1=3), dict(dim_at_3=5), dict(dim_at_2=6), dict(vox_offset=368)])
def test_a_layout_that_does_not_fill_the_file(tmp_path, fields):
    path = save(tmp_path / "a.nii", **fields)
    with pytest.raises(DataError, match=f"{path}: .*promises"):
        read_volume(path)


def test_a_header_of_the_other_byte_order(tmp_path):
    path = save(tmp_path / "a.nii")
    little = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    path.write_bytes(little.as_byteswapped(">").binaryblock + bytes(4) + VALUES.astype(">i2").tobytes(order="F"))
    volume = read_volume(path)
    np.testing.assert_array_equal(volume[0].numpy(), VALUES)
    np.testing.assert_allclose(volume.affine.numpy(), AFFINE)
    big = nib.Nifti1Header(path.read_bytes()[:348], check=False)
    big["sform_code"] = 0
    path.write_bytes(big.binaryblock + path.read_bytes()[348:])
    refused(path, "sform_code and qform_code are 0")
