"""A scan is known by its voxels: copies are found under other names, types, packings and headers."""

import gzip
import os
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data_download import lookalike
from medsynth_lib.data.files import identity
from medsynth_lib.data.files.identity import BLANK, content_of, require_distinct
from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.files import DataError

AFFINE = np.array([[-2.0, 0, 0, 9], [0, 3, 0, -4], [0, 0, 4, 1], [0, 0, 0, 1]])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path / "cache"))


def image(seed, shape=(5, 6, 7)):
    return np.random.default_rng(seed).integers(1, 900, shape).astype(np.int16)


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def manifest(root, *rows, **columns):
    table = pd.DataFrame(rows, columns=["subject", "site", "flair", "t1"])
    return Manifest(table.assign(split="").assign(**columns), root)


def big_endian(path, voxels):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(voxels, AFFINE, header), path)


def reoriented(path, voxels):
    nib.save(nib.as_closest_canonical(nib.Nifti1Image(voxels, AFFINE)), path)


def scaled(path, voxels):
    copy = nib.Nifti1Image(voxels - 100, AFFINE)
    copy.header.set_slope_inter(1, 100)
    nib.save(copy, path)


@pytest.mark.parametrize(
    "name, write",
    [
        ("b.nii", lambda path, v: save(path, v)),
        ("b.nii.gz", lambda path, v: path.write_bytes(gzip.compress((path.parent / "a.nii").read_bytes(), 1))),
        ("b.nii", lambda path, v: save(path, v.astype(np.float64))),
        ("b.nii", lambda path, v: nib.save(nib.Nifti2Image(v, AFFINE), path)),
        ("b.nii", big_endian),
        ("b.nii", reoriented),
        ("b.nii", lambda path, v: save(path, v, AFFINE + np.diag([0, 0, 0.5, 0]))),  # another header
        ("b.nii", scaled),
        ("B.NII", lambda path, v: shutil.copy(path.parent / "a.nii", path)),
    ],
)
def test_a_copy_has_the_same_content(tmp_path, name, write):
    save(tmp_path / "a.nii", image(0))
    write(tmp_path / name, image(0))
    save(tmp_path / "other.nii", image(1))
    assert content_of(tmp_path / "a.nii") == content_of(tmp_path / name) != content_of(tmp_path / "other.nii")


def test_one_voxel_more_or_less_is_another_image(tmp_path):
    voxels = image(0)
    save(tmp_path / "a.nii", voxels, np.eye(4))
    save(tmp_path / "same bytes.nii", voxels.reshape(7, 6, 5), np.eye(4))
    voxels[2, 3, 4] += 1
    save(tmp_path / "b.nii", voxels, np.eye(4))
    assert len({content_of(tmp_path / f"{name}.nii") for name in ("a", "b", "same bytes")}) == 3


def test_volumes_of_a_4d_file_are_images_of_their_own(tmp_path, monkeypatch):
    four = image(0, (4, 5, 6, 3))
    save(tmp_path / "four.nii.gz", four)
    save(tmp_path / "one.nii", four[..., 1])
    contents = [content_of(f"{tmp_path}/four.nii.gz#{k}") for k in range(3)]
    assert len(set(contents)) == 3 and contents[1] == content_of(tmp_path / "one.nii")
    monkeypatch.setattr(identity, "stored_voxels", None)  # all volumes were remembered at once
    assert contents == [content_of(f"{tmp_path}/four.nii.gz#{k}") for k in range(3)]


def test_a_volume_that_is_not_there_is_an_error_each_time(tmp_path):
    save(tmp_path / "four.nii.gz", image(0, (4, 5, 6, 3)))
    content_of(f"{tmp_path}/four.nii.gz#0")
    for _ in range(2):
        with pytest.raises(DataError, match="no volume 3"):
            content_of(f"{tmp_path}/four.nii.gz#3")


def test_a_content_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii", image(0))
    first, times = content_of(path), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    save(path, image(1))
    os.utime(path, ns=times)  # same size, same time: what a careless restore leaves
    second = content_of(path)
    assert first != second
    monkeypatch.setattr(identity, "stored_voxels", None)
    assert content_of(path) == second
    (kept,) = [p for p in (tmp_path / "cache").rglob("*.json") if second in p.read_text()]
    kept.write_text("[")
    monkeypatch.undo()
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path / "cache"))
    assert content_of(path) == second  # a damaged memory is no memory


def test_a_dicom_series_is_its_slices(tmp_path):
    hu = image(0, (8, 8, 5)) - 500
    for folder, array in (("a", hu), ("b", hu), ("c", hu + (np.arange(5) == 3))):
        lookalike.dicom(tmp_path / folder, array, np.diag([-1.0, -1, 2, 1]), "P", f"1.2.{ord(folder)}", "CT")
    for k, path in enumerate(sorted((tmp_path / "b").iterdir())):
        path.rename(path.with_name(f"IM{9 - k}"))
    (tmp_path / "b" / "069.xml").write_text("<notes/>")
    save(tmp_path / "b" / "extra.nii", image(5))  # no DICOM
    a, b, c = (content_of(tmp_path / folder) for folder in "abc")
    assert a == b != c
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no readable DICOM"):
        content_of(tmp_path / "empty")


def test_unreadable_files_are_an_error_with_their_name(tmp_path):
    (tmp_path / "x.nii.gz").write_bytes(b"nothing")
    for name in ("x.nii.gz", "missing.nii"):
        with pytest.raises(DataError, match=name):
            content_of(tmp_path / name)


# --- manifests ---


@pytest.fixture
def three(tmp_path):
    """Three subjects with FLAIR and T1, all different."""
    rows = []
    for k in range(3):
        names = [f"p{k}_{m}.nii.gz" for m in ("flair", "t1")]
        for j, name in enumerate(names):
            save(tmp_path / name, image(2 * k + j))
        rows.append((f"P{k}", "A", *names))
    require_distinct(manifest(tmp_path, *rows))
    return tmp_path, rows


def refused(root, rows, **columns):
    with pytest.raises(DataError) as caught:
        require_distinct(manifest(root, *rows, **columns))
    assert str(caught.value).startswith(f"{root}: ")
    return str(caught.value)


def test_a_cell_that_names_another_cells_file(three):
    root, rows = three
    text = refused(root, [*rows[:2], ("P2", "A", rows[2][2], rows[2][2])])
    assert "are one file: flair of P2 (A), p2_flair.nii.gz and t1 of P2 (A), p2_flair.nii.gz." in text


@pytest.mark.parametrize("link", [os.symlink, os.link, shutil.copy])
def test_links_and_copies_under_another_name(three, link):
    root, rows = three
    (root / "p2_t1.nii.gz").unlink()
    link(root / "p0_t1.nii.gz", root / "p2_t1.nii.gz")
    text = refused(root, rows, split=["train", "train", "test"])
    assert ("hold one image" if link is shutil.copy else "are one file") in text
    assert "t1 of P0 (A, train), p0_t1.nii.gz and t1 of P2 (A, test), p2_t1.nii.gz" in text


def test_a_copied_t1_as_flair_of_the_same_subject(three):
    root, rows = three
    save(root / "p1_flair.nii.gz", image(3).astype(np.float32))  # the T1 of P1
    assert "flair of P1 (A), p1_flair.nii.gz and t1 of P1 (A), p1_t1.nii.gz" in refused(root, rows)


def test_only_asked_modalities_are_read_but_all_files_are_compared(three):
    root, rows = three
    shutil.copy(root / "p0_flair.nii.gz", root / "p1_flair.nii.gz")
    require_distinct(manifest(root, *rows), ("t1",))
    require_distinct(manifest(root, *rows), ("t1",), jobs=2)
    with pytest.raises(DataError, match="are one file"):
        require_distinct(manifest(root, *rows[:2], ("P2", "A", rows[0][2], rows[2][3])), ("t1",))


def test_many_copies_are_counted(tmp_path):
    rows = []
    for k in range(9):
        save(tmp_path / f"{k}.nii", image(0))
        rows.append((f"P{k}", "A", "", f"{k}.nii"))
    text = refused(tmp_path, rows)
    assert text.count(" and t1 of ") == 5 and "; and 3 more pair(s)." in text


def test_blank_images_and_unreadable_files_are_no_copies(three):
    root, rows = three
    for k in range(3):
        save(root / f"seg{k}.nii.gz", np.zeros((5, 6, 7), np.uint8))
    assert content_of(root / "seg0.nii.gz") == BLANK
    (root / "p0_t1.nii.gz").write_bytes(b"broken")
    (root / "p1_t1.nii.gz").write_bytes(b"broken")
    (root / "p2_t1.nii.gz").unlink()
    require_distinct(manifest(root, *rows, seg=[f"seg{k}.nii.gz" for k in range(3)]))


def test_labels_of_another_subject(three):
    root, rows = three
    for k in range(3):
        save(root / f"seg{k}.nii.gz", (image(k // 2) > 500).astype(np.uint8))
    text = refused(root, rows, seg=[f"seg{k}.nii.gz" for k in range(3)])
    assert "seg of P0 (A), seg0.nii.gz and seg of P1 (A), seg1.nii.gz" in text


def test_simulated_scans_are_not_read(tmp_path):
    rows = [("1", "A", "", "one.nii"), ("2", "A", "", "one.nii")]
    save(tmp_path / "one.nii", image(0))
    require_distinct(manifest(tmp_path, *rows, simulated=True))
    refused(tmp_path, rows)


@pytest.mark.parametrize(
    "one, other",
    [
        ("P001", "p001"),
        ("P_01", "P-01"),
        ("P1", "P001"),
        ("P 1", "P_1"),
        ("x.1", "x-01"),
        ("é", "e\u0301"),
        ("7", "7.0"),
        ("Ａ1", "A1"),
    ],
)
def test_two_spellings_of_a_subject_or_a_site(tmp_path, one, other):
    for rows in ([(one, "A", "", ""), (other, "A", "", "")], [("1", one, "", ""), ("2", other, "", "")]):
        text = refused(tmp_path, rows)
        assert f"{one!r}" in text and f"{other!r}" in text and "two spellings" in text


def test_names_that_differ_in_more_are_two(tmp_path):
    names = ["P1", "P10", "P01-1", "P11", "P1-10", "Q1", "P1_1_0", "1", "11", "0", "00x"]
    require_distinct(manifest(tmp_path, *((name, "A", "", "") for name in names)))
