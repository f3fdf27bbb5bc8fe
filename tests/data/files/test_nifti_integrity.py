"""Damaged files: no bit of a compressed file changes a voxel unseen, and every odd file gives one line with a remedy."""

import bz2
import gzip
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from test_nifti import refused

from medsynth_lib.data.files.nifti import read_header, read_volume
from medsynth_lib.files import DataError

VALUES = np.random.default_rng(0).integers(1, 900, (3, 4, 5)).astype(np.int16)


@pytest.fixture
def scan(tmp_path):
    nib.save(nib.Nifti1Image(VALUES, np.diag([2.0, 3, 4, 1])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def outcome(path):
    """The voxels and affine of a file, or "refused"."""
    try:
        volume = read_volume(path)
    except DataError:
        return "refused"
    return volume[0].numpy().tolist(), volume.affine.numpy().tolist()


def test_a_flipped_bit_is_refused_or_harmless(scan):
    whole, right, refusals = scan.read_bytes(), outcome(scan), []
    for at in range(0, 8 * len(whole), 5):  # at least one bit of every byte
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        scan.write_bytes(damaged)
        found = outcome(scan)
        assert found in (right, "refused"), f"bit {at} changes the volume"
        refusals += [at // 8] if found == "refused" else []
    packed = whole.index(b"\0", 10) + 1  # behind gzip's header, which ends with the file's name
    assert set(range(packed, len(whole))) <= set(refusals)


def test_every_length_but_the_whole_is_refused(scan):
    whole = scan.read_bytes()
    for length in range(len(whole)):
        scan.write_bytes(whole[:length])
        assert outcome(scan) == "refused", f"{length} of {len(whole)} bytes"
    plain = scan.with_name("plain.nii")
    for length in range(0, len(unpacked := gzip.decompress(whole)), 7):
        plain.write_bytes(unpacked[:length])
        assert outcome(plain) == "refused", f"{length} of {len(unpacked)} bytes"


def test_a_damaged_checksum_is_named(scan):
    whole = bytearray(scan.read_bytes())
    whole[-8] ^= 1
    scan.write_bytes(whole)
    refused(lambda: read_volume(scan), scan, "damaged", "CRC", "again")
    whole[-8] ^= 1
    whole[-1] ^= 1
    scan.write_bytes(whole)
    refused(lambda: read_volume(scan), scan, "damaged", "length", "again")


@pytest.mark.parametrize("more", [b"\1", b"garbage", bytes(2000), VALUES.tobytes()])
def test_bytes_behind_the_last_voxel_are_refused(scan, more):
    unpacked = gzip.decompress(scan.read_bytes())
    for name, content in {"a.nii": unpacked + more, "b.nii.gz": gzip.compress(unpacked + more)}.items():
        (scan.parent / name).write_bytes(content)
        refused(lambda name=name: read_volume(scan.parent / name), name, (3, 4, 5), "goes on after", 352 + 2 * 60)


def test_bytes_behind_the_packed_file(scan):
    whole, right = scan.read_bytes(), outcome(scan)
    scan.write_bytes(whole + b"garbage")
    refused(lambda: read_volume(scan), scan, "damaged")
    scan.write_bytes(whole + whole)
    refused(lambda: read_volume(scan), scan, "goes on after")
    scan.write_bytes(whole + bytes(512))  # a tape's padding, which gzip allows
    assert outcome(scan) == right


def test_a_file_of_several_packed_parts_is_one_file(scan):
    unpacked, right = gzip.decompress(scan.read_bytes()), outcome(scan)
    scan.write_bytes(gzip.compress(unpacked[:360]) + gzip.compress(unpacked[360:]))
    assert outcome(scan) == right


def test_a_volume_of_a_damaged_4d_file_is_refused(tmp_path):
    path = tmp_path / "four.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([VALUES] * 3, -1), np.eye(4)), path)
    np.testing.assert_array_equal(read_volume(f"{path}#0")[0].numpy(), VALUES)
    whole = bytearray(path.read_bytes())
    whole[-6] ^= 1
    path.write_bytes(whole)
    refused(lambda: read_volume(f"{path}#0"), f"{path}#0", "CRC")


# --- names ---


@pytest.mark.parametrize("name", ["SCAN.NII.GZ", "Scan.Nii.Gz", "scan.nii", "study #2/a.nii.gz", "a#1.nii.gz", "é ü.nii.gz",
                                  "a b'{x}$HOME.nii.gz", "a.nii.gz#0"])  # fmt: skip
def test_any_name_is_read(scan, name):
    (scan.parent / name).parent.mkdir(exist_ok=True)
    shutil.copy(scan, scan.parent / name)  # "scan.nii" is compressed all the same
    assert outcome(scan.parent / name) == outcome(scan) != "refused"
    assert read_header(scan.parent / name).shape == VALUES.shape


def test_a_plain_file_under_a_packed_name_is_read(scan):
    right = outcome(scan)
    scan.write_bytes(gzip.decompress(scan.read_bytes()))
    assert outcome(scan) == right


def test_what_is_no_file_is_said(tmp_path, scan):
    refused(lambda: read_volume(tmp_path), tmp_path, "folder")
    os.symlink(tmp_path / "gone.nii", tmp_path / "link.nii")
    refused(lambda: read_volume(tmp_path / "link.nii"), "link.nii", "gone.nii", "link to")
    refused(lambda: read_volume(f"{scan}#first"), "no volume first", "count from 0")


def test_a_file_that_may_not_be_read_is_said(scan, monkeypatch):
    def closed(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", closed)
    refused(lambda: read_volume(scan), scan, "Permission denied", "allow")


# --- other formats ---


def test_other_files_are_named(scan):
    folder = scan.parent
    for name, content, word in [
        ("empty.nii.gz", b"", "empty"),
        ("empty.nii", b"", "empty"),
        ("packed.nii.gz", gzip.compress(b""), "empty"),
        ("page.nii.gz", b"<!DOCTYPE html><html>" * 40, "<!DOCTYPE html"),
        ("pointer.nii", b"version https://git-lfs.github.com/spec/v1\n" * 20, "version https://"),
        ("twice.nii.gz", gzip.compress(gzip.compress(b"x" * 4000)), "gzip"),
        ("a.nii.zip", b"PK\3\4" * 200, "PK"),
        ("series.dcm", bytes(128) + b"DICM" + bytes(600), "x00"),
        ("mat.nii", b"MATLAB 5.0 MAT-file" * 40, "MATLAB"),
    ]:
        (folder / name).write_bytes(content)
        refused(lambda name=name: read_volume(folder / name), name, word, "NIfTI")


@pytest.mark.parametrize("kind, name", [(nib.Nifti1Pair, "Nifti1Pair"), (nib.AnalyzeImage, "Analyze")])
@pytest.mark.parametrize("ending", [".hdr", ".img"])
def test_files_in_two_parts_are_refused(tmp_path, kind, name, ending):
    nib.save(kind(VALUES, np.eye(4)), tmp_path / "pair.img")
    for read in (read_volume, read_header):
        refused(lambda read=read: read(tmp_path / f"pair{ending}"), f"pair{ending}", name, "convert it to .nii.gz")


def test_a_format_that_lacks_a_package_is_refused(tmp_path, monkeypatch):
    (tmp_path / "v.mnc").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))

    def missing(path):
        raise ImportError("We need h5py to load this file")

    monkeypatch.setattr(nib, "load", missing)
    refused(lambda: read_volume(tmp_path / "v.mnc"), "v.mnc", "HDF", "convert")


def test_a_file_packed_in_another_way_is_refused(scan):
    other = scan.with_name("scan.nii.bz2")
    other.write_bytes(bz2.compress(gzip.decompress(scan.read_bytes())))
    refused(lambda: read_volume(other), other, "packed by gzip or not at all", "convert")


def test_nifti_2_is_read(tmp_path):
    nib.save(nib.Nifti2Image(VALUES, np.diag([2.0, 3, 4, 1])), tmp_path / "two.nii.gz")
    volume = read_volume(tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(volume[0].numpy(), VALUES)
    np.testing.assert_array_equal(volume.affine.numpy(), np.diag([2.0, 3, 4, 1]))


# --- labels ---


@pytest.mark.parametrize(
    "value, dtype, words",
    [
        (3.9999, "float32", ("no whole numbers", "nearest")),
        (4.00000001, "float64", ("4.00000001", "no whole numbers")),
        (0.5, "float32", ("0.5", "no whole numbers")),
        (-1, "int16", ("unknown labels [-1.0]", "BraTS")),
        (3, "uint8", ("unknown labels [3.0]", "change 3 to 4")),
        (5, "uint8", ("unknown labels [5.0]", "map yours")),
        (2**24 + 1, "int32", ("16777217.0",)),
    ],
)
def test_what_is_no_label_is_refused(tmp_path, value, dtype, words):
    seg = np.zeros((3, 4, 5), dtype)
    seg[0, 0, :3] = 1, 2, value
    nib.save(nib.Nifti1Image(seg, np.eye(4), dtype=dtype), tmp_path / "seg.nii.gz")
    refused(lambda: read_volume(tmp_path / "seg.nii.gz", labels=True), "seg.nii.gz", *words)


def test_label_3_beside_4_is_not_taken_for_the_tumour(tmp_path):
    seg = np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % 5
    nib.save(nib.Nifti1Image(seg, np.eye(4)), tmp_path / "seg.nii")
    refused(lambda: read_volume(tmp_path / "seg.nii", labels=True), "[3.0]", "map yours")
    np.testing.assert_array_equal(read_volume(tmp_path / "seg.nii", labels=range(5))[0].numpy(), seg)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_labels_of_any_type_are_read(tmp_path, dtype):
    seg = np.array([0, 1, 2, 4] * 15, dtype).reshape(3, 4, 5)
    nib.save(nib.Nifti1Image(seg, np.eye(4), dtype=dtype), tmp_path / "seg.nii.gz")
    volume = read_volume(tmp_path / "seg.nii.gz", labels=True)
    np.testing.assert_array_equal(volume[0].numpy(), seg)
    assert volume.numpy().dtype == np.float32
