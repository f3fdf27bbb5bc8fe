"""Manifests: round trips, discovery of BraTS folders, splits without leaks."""

import errno
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medsynth_lib.data.files.brats import find_cases
from medsynth_lib.data.files.layouts import open_dataset
from medsynth_lib.data.files.manifest import Manifest, Scan, check_leaks
from medsynth_lib.data.files.splits import five_folds, paper_table_1, split_source_target
from medsynth_lib.files import DataError, content_hash, fingerprint


def scans(**per_site):
    """A manifest with so many subjects a site, subjects named by site."""
    rows = [{"subject": f"{site}{i:03}", "site": site, "split": ""} for site, n in per_site.items() for i in range(n)]
    return Manifest(pd.DataFrame(rows), Path("folder"))


def make_brats(folder, name, modalities=("flair", "t1", "t1ce", "t2", "seg"), ending=".nii.gz"):
    case = folder / name
    case.mkdir(parents=True)
    for modality in modalities:
        (case / f"{name}_{modality}{ending}").touch()  # discovery reads names only


# --- CSV ---


def test_round_trip_keeps_text_and_numbers(tmp_path):
    columns = dict(subject=["007", "NA"], flair=["x/f.nii", ""], vent_ml=[17.5, np.nan], split="train")
    Manifest(scans(A=2).table.assign(**columns), tmp_path).write(tmp_path / "manifest.csv")
    back = Manifest.read(tmp_path / "manifest.csv")
    table = back.table
    assert list(table.columns) == ["subject", "site", "split", "flair", "vent_ml"]
    assert table["subject"].tolist() == ["007", "NA"] and table["flair"].tolist() == ["x/f.nii", ""]
    assert table["vent_ml"][0] == 17.5 and np.isnan(table["vent_ml"][1])
    assert back.root == tmp_path and back.scans()[0].path("flair") == tmp_path / "x" / "f.nii"


def test_missing_split_column_is_empty(tmp_path):
    (tmp_path / "m.csv").write_text("subject,site\n1,A\n")
    assert Manifest.read(tmp_path / "m.csv").scans()[0].cells == {"subject": "1", "site": "A", "split": ""}


def test_paths_follow_a_manifest_to_another_folder(tmp_path):
    make_brats(tmp_path / "data", "BraTS19_CBICA_AAB_1")
    find_cases(tmp_path / "data").write(tmp_path / "lists" / "manifest.csv")
    (scan,) = Manifest.read(tmp_path / "lists" / "manifest.csv").scans()
    assert scan["flair"].startswith("..") and scan.path("flair").is_file()


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["not a readable table", "empty"]),
        ("subject,split\n1,a\n", ["no column 'site'", "'subject', 'split'"]),
        ("subject,site\n1,A\n,A\n", ["line 3", "'subject'"]),
        ("subject,site\n1,A\n1,A\n", ["repeated", "(1)"]),
        ("subject,site\n../../1,A\n", ["subject '../../1'", "rename"]),
        ("subject,site\n/1,A\n", ["subject '/1'", "rename"]),
        ("subject,site\n1,A\\B\n", ["site 'A", "rename"]),
        (
            "subject,site,split\n1,A,train\n2,A,training\n",
            ["line 3", "'training'", "train, tune, test, adapt", "empty"],
        ),
        ("subject,site,split\n1,A,train\n2,A,\n3,A,\n", ["line 3 and 1 more have no split", "leave the column empty"]),
        ("\n\nsubject,site\n1,A\n\n,A\n", ["line 6", "'subject'"]),  # empty lines count
        ("\nsubject,site,split\n1,A,train\n\n2,A,\n", ["line 5 and 0 more have no split"]),
        ("subject,site,age\n1,A,5,5\n", ["line 2 has 4 cells", "3 names", "in quotes"]),
        ('subject,site,age\n1,A,"1,234"\n', ["column 'age', line 2: '1,234' may be 1.234 or 1234"]),
        ('subject,site\n1,"A\n2,A\n', ["line 2", "close every quote"]),
        ("subject,site\np1,A\nP1,A\n", ["'p1'", "'P1'", "two spellings"]),
        ("subject,site\np1,Basel\np2,basel\n", ["site 'Basel' and site 'basel'", "two spellings"]),
        ("subject,site,T1,t1\n1,A,a.nii,b.nii\n", ["columns ['T1', 't1'] are one"]),
    ],
)
def test_bad_manifests(tmp_path, text, words):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        Manifest.read(tmp_path / "m.csv")
    assert all(word in str(caught.value) for word in [str(tmp_path), *words])


def test_known_columns_may_be_written_in_any_case(tmp_path, capsys):
    (tmp_path / "m.csv").write_text("Subject, SITE,FLAIR,T1,Age\n007,NA,f.nii,t.nii,5\n")
    (scan,) = Manifest.read(tmp_path / "m.csv").scans()
    assert scan.cells == dict(subject="007", site="NA", split="", flair="f.nii", t1="t.nii", Age=5)
    assert capsys.readouterr().out == ""


def test_a_manifest_from_a_spreadsheet(tmp_path):
    text = (
        "Subject;Site;FLAIR;Seg;Split;Age;Note\r\n007;NA;f.nii;n/a;NA;5,5;x\r\n008;NA;g.nii;s.nii;-;NA;\r\n;;;;;;\r\n"
    )
    (tmp_path / "m.csv").write_text(text, encoding="utf-16")
    one, two = Manifest.read(tmp_path / "m.csv").scans()
    assert one.cells == dict(subject="007", site="NA", flair="f.nii", seg="", split="", Age=5.5, Note="x")
    assert not one.has("seg") and two.path("seg") == tmp_path / "s.nii" and np.isnan(two["Age"]) and two["Note"] == ""


def test_paths_that_windows_wrote(tmp_path):
    (tmp_path / "a\\b.nii").touch()  # a name that has a backslash
    (tmp_path / "m.csv").write_text("subject,site,t1,t2\n1,A,p1\\t1.nii,a\\b.nii\n")
    assert [Manifest.read(tmp_path / "m.csv").scans()[0][m] for m in ("t1", "t2")] == ["p1/t1.nii", "a\\b.nii"]


def test_a_home_folder_in_a_cell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "m.csv").write_text("subject,site,t1\n1,A,~/x/t1.nii\n")
    manifest = Manifest.read(tmp_path / "m.csv")
    assert manifest.scans()[0].path("t1") == tmp_path / "home" / "x" / "t1.nii"
    manifest.write(tmp_path / "n.csv")
    assert Manifest.read(tmp_path / "n.csv").scans()[0].path("t1") == tmp_path / "home" / "x" / "t1.nii"


def test_a_column_of_images_that_is_no_modality_is_named(tmp_path, capsys):
    (tmp_path / "m.csv").write_text("subject,site,T2_FLAIR,dwi,note\n1,A,f.nii.gz,d.nii,see f.nii.gz of 2\n2,A,,,\n")
    assert "T2_FLAIR" in Manifest.read(tmp_path / "m.csv").table
    flair, dwi = capsys.readouterr().out.splitlines()
    assert flair.startswith(f"{tmp_path}") and "column 'T2_FLAIR'" in flair and "did you mean flair?" in flair
    assert "column 'dwi'" in dwi and "known are flair, t1" in dwi


def test_missing_manifest(tmp_path):
    with pytest.raises(DataError, match="m.csv: no such manifest"):
        Manifest.read(tmp_path / "m.csv")


def test_disk_full_leaves_the_earlier_manifest(tmp_path, monkeypatch):
    path = tmp_path / "m.csv"
    scans(A=1).write(path)
    before = path.read_text()

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match="m.csv: cannot be written .No space left"):
        scans(A=2).write(path)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


# --- scans ---


def test_scans_are_selected_by_their_columns():
    manifest = scans(A=2, B=1, C=1).assign(split=["train", "test", "train", "train"])
    assert manifest.select(site=("A", "C"), split="train").table["subject"].tolist() == ["A000", "C000"]
    chosen = manifest.where(manifest.table["site"] == "B")
    assert chosen.table.index.tolist() == [0] and chosen.root == manifest.root and len(manifest) == 4
    assert len(manifest.head(2)) == 2 and manifest.head(None) is manifest and not len(manifest.select(site="D"))


def test_a_scan_names_what_it_lacks(tmp_path):
    scan = Scan(dict(subject="7", site="A", t1=" t1.nii ", t2="", ct=np.nan), tmp_path)
    assert (
        scan.path("t1") == tmp_path / "t1.nii"
        and [scan.has(m) for m in ("t1", "t2", "ct", "pd")] == [True] + [False] * 3
    )
    with pytest.raises(DataError, match=f"{tmp_path}: subject 7 .site A. has no t2"):
        scan.path("t2")
    assert scan.replace(t2="x.nii").has("t2") and not scan.has("t2")


def test_identity_is_facts_of_a_simulation_or_hashes_of_files(tmp_path):
    (tmp_path / "t1.nii").write_bytes(b"voxels")
    facts = dict(simulated=True, simulator="brain 1.3", nx=4, ny=5, nz=6, spacing_mm=2.0, tumour=False)
    made, real = (Manifest(pd.DataFrame([dict(subject="1", site="A", split="", t1="t1.nii") | more]), tmp_path)
                  for more in (facts, {}))  # fmt: skip
    assert made.simulated and not real.simulated and not made.select(site="B").simulated
    assert real.scans()[0].identity(("t1",)) == [content_hash(b"voxels")]
    made.write(tmp_path / "m.csv")
    back = Manifest.read(tmp_path / "m.csv").scans()[0]
    assert back.shape == (4, 5, 6) and back["tumour"] is False and back["simulator"] == "brain 1.3"
    key = fingerprint(back.identity(("t1",)))
    assert key == fingerprint(made.scans()[0].identity(()))  # reading and writing change nothing
    for other in (dict(nx=5), dict(tumour=True), dict(spacing_mm=2.5), dict(site="B"), dict(simulator="brain 1.4")):
        assert fingerprint(back.replace(**other).identity(())) != key


# --- discovery ---


def test_brats_2019_layout(tmp_path):
    make_brats(tmp_path / "Data_Training" / "HGG", "BraTS19_CBICA_AAB_1")
    make_brats(tmp_path / "Data_Training" / "LGG", "BraTS19_TCIA13_615_1", ending=".nii")
    make_brats(tmp_path / "Data_Training" / "HGG", "BraTS19_2013_10_1", modalities=("flair", "t2"))
    make_brats(tmp_path / "Data_Training" / "HGG", "BraTS19_TMC_06290_1")
    (tmp_path / "Data_Training" / "notes").mkdir()
    frame = find_cases(tmp_path).table.set_index("site")
    assert sorted(frame.index) == ["2013", "CBICA", "TCIA", "TMC"]
    assert frame.loc["TCIA", "subject"] == "BraTS19_TCIA13_615_1" and frame.loc["TCIA", "grade"] == "LGG"
    assert frame.loc["CBICA", "t1ce"] == "Data_Training/HGG/BraTS19_CBICA_AAB_1/BraTS19_CBICA_AAB_1_t1ce.nii.gz"
    assert frame.loc["TCIA", "seg"].endswith("_seg.nii")
    assert frame.loc["2013", ["t1", "t1ce", "seg"]].tolist() == [""] * 3 and frame.loc["2013", "t2"] != ""


def test_brats_2020_sites_come_from_the_name_mapping(tmp_path):
    for number in ("001", "002", "003"):
        make_brats(tmp_path / "Training", f"BraTS20_Training_{number}")
    (tmp_path / "Training" / "name_mapping.csv").write_text(
        "Grade,BraTS_2019_subject_ID,BraTS_2020_subject_ID\n"
        "HGG,BraTS19_TCIA01_235_1,BraTS20_Training_001\nLGG,NA,BraTS20_Training_002\n"
    )
    frame = find_cases(tmp_path).table
    assert frame["site"].tolist() == ["TCIA", "unknown", "unknown"]
    assert frame["grade"].tolist() == ["HGG", "LGG", ""]
    assert frame["subject"][0] == "BraTS20_Training_001"


def test_name_mapping_of_another_kind_is_refused(tmp_path):
    make_brats(tmp_path, "BraTS20_Training_001")
    (tmp_path / "name_mapping.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="name_mapping.csv: columns .*BraTS_2019_subject_ID"):
        find_cases(tmp_path)


def test_simulated_subject_keeps_its_id_at_both_sites(tmp_path):
    make_brats(tmp_path, "BraTS19_SIMA_007_1")
    make_brats(tmp_path, "BraTS19_SIMB_007_1")
    manifest = find_cases(tmp_path)
    frame = manifest.table
    assert frame["subject"].tolist() == ["007", "007"] and frame["site"].tolist() == ["SIMA", "SIMB"]
    with pytest.raises(DataError, match="007"):
        split_source_target(manifest, "SIMA", "SIMB", n_adapt=0)


def test_folders_without_images(tmp_path):
    with pytest.raises(DataError, match="no folder named like"):
        find_cases(tmp_path)
    make_brats(tmp_path, "BraTS19_CBICA_AAB_1", modalities=())
    with pytest.raises(DataError, match="BraTS19_CBICA_AAB_1: none of"):
        find_cases(tmp_path)


def test_case_unpacked_twice(tmp_path):
    make_brats(tmp_path / "a", "BraTS19_CBICA_AAB_1")
    make_brats(tmp_path / "b", "BraTS19_CBICA_AAB_1")
    with pytest.raises(DataError, match="repeated.*BraTS19_CBICA_AAB_1"):
        find_cases(tmp_path)


def test_open_dataset_prefers_the_manifest(tmp_path):
    make_brats(tmp_path, "BraTS19_CBICA_AAB_1")
    assert open_dataset(tmp_path).table["subject"].tolist() == ["BraTS19_CBICA_AAB_1"]
    scans(A=3).write(tmp_path / "manifest.csv")
    assert len(open_dataset(tmp_path)) == 3


# --- splits ---


def test_leaks_are_named_across_sites():
    manifest = scans(A=3, B=3).assign(split=["train"] * 3 + ["test"] * 3)
    check_leaks(manifest)
    manifest.table.loc[4, "subject"] = "A001"
    with pytest.raises(DataError, match="1 subject.*A001"):
        check_leaks(manifest)
    check_leaks(manifest.assign(split="train"))  # the same subject at two sites is no leak in itself
    with pytest.raises(DataError, match="repeated.*A001"):
        check_leaks(manifest.assign(site="A"))


def test_written_manifest_cannot_leak(tmp_path):
    manifest = scans(A=1, B=1).assign(subject="S", split=["train", "test"])
    with pytest.raises(DataError, match="more than one split"):
        manifest.write(tmp_path / "m.csv")


def test_split_reproduces_table_1():
    table = paper_table_1()
    for source, target, counts in (("CBICA", "TCIA", (146, 100, 139)), ("TCIA", "CBICA", (239, 100, 46))):
        split = split_source_target(scans(CBICA=146, TCIA=239, TMC=9), source, target, n_adapt=100).table
        assert tuple((split["split"] == role).sum() for role in ("train", "adapt", "test")) == counts
        assert set(split["site"]) == {"CBICA", "TCIA"}
        printed = table[(table["direction"] == f"{source} -> {target}") & (table["method"] == "UDA")].iloc[0]
        assert (printed["source"], int(printed["adapt"]), printed["test"]) == counts


def test_a_site_of_a_name_mapping_is_no_path(tmp_path):
    case = tmp_path / "BraTS20_Training_001"
    case.mkdir()
    (case / f"{case.name}_t1.nii.gz").write_bytes(b"x")
    names = "BraTS_2019_subject_ID,BraTS_2020_subject_ID\nBraTS19_../evil_1_1,BraTS20_Training_001\n"
    (tmp_path / "name_mapping.csv").write_text(names)
    with pytest.raises(DataError, match="site '../evil' holds"):
        find_cases(tmp_path)


def test_splits_are_disjoint_random_and_repeatable():
    manifest = scans(A=10, B=20)
    split = split_source_target(manifest, "A", "B", n_adapt=8, n_tune=3, seed=1).table
    sets = [set(split.loc[split["split"] == role, "subject"]) for role in ("train", "adapt", "tune", "test")]
    assert [len(s) for s in sets] == [10, 8, 3, 9] and len(set.union(*sets)) == 30
    assert set(split.loc[split["split"] == "train", "site"]) == {"A"}
    shuffled = manifest.replace(manifest.table.sample(frac=1, random_state=0))
    shuffled = split_source_target(shuffled, "A", "B", n_adapt=8, n_tune=3, seed=1).table.sort_values("subject")
    pd.testing.assert_frame_equal(shuffled.reset_index(drop=True), split)  # subjects count, not their order
    drawn = [split_source_target(manifest, "A", "B", n_adapt=8, seed=seed).table["split"] for seed in (1, 2)]
    assert not drawn[0].equals(drawn[1]) and (manifest.table["split"] == "").all()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(source="A", target="B", n_adapt=5), "n_adapt=5"),
        (dict(source="A", target="B", n_adapt=3, n_tune=2), "n_tune=2"),
        (dict(source="A", target="C", n_adapt=1), "'C'"),
        (dict(source="A", target="A", n_adapt=1), "two of the sites"),
    ],
)
def test_impossible_splits(arguments, words):
    with pytest.raises(DataError, match=words):
        split_source_target(scans(A=4, B=5), **arguments)


def test_saved_split_is_not_remade():
    with pytest.raises(DataError, match="already filled"):
        split_source_target(scans(A=4, B=5).assign(split="train"), "A", "B", n_adapt=1)


def test_five_folds_test_every_subject_once_at_every_site():
    both = pd.concat([scans(A=23, B=11).table, scans(A=23, B=11).table.assign(site="C")], ignore_index=True)
    manifest = Manifest(both, Path("folder"))
    folds = five_folds(manifest, seed=3).table
    assert folds.groupby("subject")["fold"].nunique().eq(1).all()  # both scans of a subject fall in one fold
    assert set(folds["fold"]) == set(range(5)) and len(folds) == len(manifest)
    assert (folds.groupby("fold")["site"].nunique() == 3).all()
    sizes = five_folds(scans(A=20, B=10)).table.groupby(["site", "fold"]).size()
    assert sizes["A"].eq(4).all() and sizes["B"].eq(2).all()
    pd.testing.assert_frame_equal(folds, five_folds(manifest, seed=3).table)
    assert not folds["fold"].equals(five_folds(manifest, seed=4).table["fold"]) and "fold" not in manifest.table


def test_too_few_subjects_for_the_folds():
    with pytest.raises(DataError, match="site B has only 4"):
        five_folds(scans(A=9, B=4))


def test_table_1_notes_what_does_not_add_up():
    table = paper_table_1()
    assert len(table) == 6
    wrong = table[(table["direction"] == "TCIA -> CBICA") & (table["method"] == "Without DA")].iloc[0]
    assert wrong["source"] == 146 and "239" in wrong["note"]
    assert table.loc[table["source"] == 0, "note"].str.contains("contradicts").all()


def test_a_manifest_without_rows_is_refused(tmp_path):
    for text in ("subject,site,t1\n", "subject,site,t1\n\n\n"):
        (tmp_path / "manifest.csv").write_text(text)
        with pytest.raises(DataError, match="manifest.csv.*no rows.*one row a scan"):
            Manifest.read(tmp_path / "manifest.csv")
