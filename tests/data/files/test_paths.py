"""Names of image files and folders of real data: every odd one is read as what it is, or refused by name."""

import os
from pathlib import Path

import pytest

from medsynth_lib.data.files.paths import find_files, split_volume, stem
from medsynth_lib.files import DataError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(folder, *endings):
    return [path.relative_to(folder).as_posix() for path in find_files(folder, *endings)]


@pytest.mark.parametrize(
    "path, file, number",
    [
        ("a.nii.gz#2", "a.nii.gz", 2),
        ("A.NII.GZ#0", "A.NII.GZ", 0),
        ("a.nii#12", "a.nii", 12),
        ("study #2/a.nii.gz", "study #2/a.nii.gz", None),
        ("study#2/a.nii#3", "study#2/a.nii", 3),
        ("a.nii.gz#x", "a.nii.gz#x", None),
        ("a.nii.gz#-1", "a.nii.gz#-1", None),
        ("a.nii.gz#", "a.nii.gz#", None),
        ("a#2.nii.gz", "a#2.nii.gz", None),
        ("a.mgz#2", "a.mgz#2", None),
        ("a.nii.gz#1#2", "a.nii.gz#1#2", None),
    ],
)
def test_only_a_number_behind_the_ending_is_a_volume(path, file, number):
    assert split_volume(path) == (Path(file), number)
    assert split_volume(Path(path)) == (Path(file), number)


def test_a_file_of_the_whole_name_wins(tmp_path):
    touch(tmp_path, "a.nii.gz#2")
    assert split_volume(tmp_path / "a.nii.gz#2") == (tmp_path / "a.nii.gz#2", None)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.NII", "a.Nii.GZ"])
def test_a_stem_is_a_name_without_its_ending_in_any_case(name):
    assert stem(Path("x.nii", name)) == "a"
    assert stem(Path("a.nii.b.gz")) == "a.nii.b.gz"


def test_files_are_found_in_any_case_and_hidden_ones_are_not(tmp_path):
    touch(tmp_path, "b/A.NII.GZ", "b/._A.NII.GZ", "a/x.nii", "a/x.nii.txt", "top.Nii", ".trash/y.nii", "__MACOSX/z.nii")
    touch(tmp_path, "__MACOSX/b/._A.NII.GZ", "c/@eaDir/t.nii", "$RECYCLE.BIN/u.nii", "c/.DS_Store", "c/__MACOSX/v.nii")
    assert names(tmp_path) == ["top.Nii", "a/x.nii", "b/A.NII.GZ"]
    assert names(tmp_path, (".txt",)) == ["a/x.nii.txt"]


def test_the_folder_itself_may_be_hidden(tmp_path):
    touch(tmp_path, ".data/a.nii")
    assert names(tmp_path / ".data") == ["a.nii"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    touch(tmp_path, "outside/a.nii", "data/b/c.nii")
    for link, target in {"data/x": "outside", "data/y": "outside", "outside/back": "outside", "data/up": ".",
                         "data/b/self": "data/b", "data/root": "/"}.items():  # fmt: skip
        os.symlink(tmp_path / target, tmp_path / link)
    os.symlink(tmp_path / "nowhere", tmp_path / "data" / "dead")
    assert names(tmp_path / "data") == ["b/c.nii", "x/a.nii"]
    os.symlink(tmp_path / "data", tmp_path / "link")
    assert names(tmp_path / "link") == ["b/c.nii", "x/a.nii"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "a/b.nii")
    listed = os.scandir

    def refuse(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=rf"{tmp_path}/a: cannot be listed \(Permission denied\)"):
        find_files(tmp_path)
