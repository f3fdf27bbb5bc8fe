"""DATA_DIR and the shipped models: real layouts take the same path, and what ships is what the lessons say it is."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medsynth_lib.course.lesson import open_lesson
from medsynth_lib.data.files.brats import find_cases
from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.files.selection import fewest_subjects, pair_inputs, site_pair
from medsynth_lib.data.files.splits import split_sites
from medsynth_lib.data.preparation.harmonise import foreseen
from medsynth_lib.data.simulation.dataset import simulated_dataset
from medsynth_lib.evaluation.synthesis import copy_input, mean_target, predict, score_subjects
from medsynth_lib.experiments.lesson_data import (
    kind_of,
    lesson_contract,
    lesson_manifest,
    lesson_volumes,
    require_data,
    volumes,
)
from medsynth_lib.experiments.trained_models import load
from medsynth_lib.files import DataError
from medsynth_lib.settings import load_settings, notebooks_folder


def listed(rows):
    """A manifest of rows, whose files nobody reads."""
    return Manifest(pd.DataFrame(rows), Path("folder"))


@pytest.fixture
def brats_folder(tmp_path):
    """Six simulated subjects under the folder names of two real sites, with nobody at both, and without a manifest."""
    manifest = simulated_dataset(dict(train=6), (32, 32, 24), 7.5, folder=tmp_path / "simulated")
    root = tmp_path / "brats" / "HGG"
    for i, site in enumerate(["CBICA", "TCIA02"] * 3):
        scan = manifest.select(site="SIMA" if site == "CBICA" else "SIMB").scans()[i]
        name = f"BraTS19_{site}_{i:03d}_1"
        for modality in ("flair", "t1", "t2", "seg"):  # t1ce is missing: nothing here needs it
            target = root / name / f"{name}_{modality}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(scan.path(modality), target)
    return tmp_path / "brats"


@pytest.mark.slow
def test_data_dir_alone_opens_a_brats_folder(brats_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(brats_folder))
    lesson = open_lesson("02", "quick", out_dir=tmp_path / "out")
    manifest = lesson_manifest(lesson)
    assert site_pair(manifest) == ("CBICA", "TCIA") and kind_of(manifest) == "real"
    assert manifest.table.groupby("site")["split"].agg(lambda s: sorted(s)).tolist() == [["test", "train", "tune"]] * 2
    sample = volumes(manifest, lesson_contract(lesson, manifest), "TCIA", "test")[0]
    assert sample["x"].shape == (2, 40, 40, 30) and sample["seg"].any()


def test_saved_splits_win_and_what_a_lesson_lacks_is_named(brats_folder, tmp_path):
    saved = ["test", "tune", "train"] * 2
    find_cases(brats_folder).assign(split=saved).write(brats_folder / "manifest.csv")
    lesson = open_lesson("02", "quick", data_dir=brats_folder, out_dir=tmp_path / "out")
    assert lesson_manifest(lesson).table["split"].tolist() == saved
    find_cases(brats_folder).assign(split=["train", "test", "test"] * 2).write(brats_folder / "manifest.csv")
    with pytest.raises(DataError, match="has 0 subject.s. in split .*, but lesson 02 needs at least 1 train"):
        lesson_manifest(lesson)


def test_splits_are_per_subject_and_repeatable():
    manifest = listed([dict(subject=f"{s}{i}", site=s, split="") for s, n in (("A", 40), ("B", 7)) for i in range(n)])
    one, two, other = (split_sites(manifest, seed).table for seed in (0, 0, 1))
    assert one.equals(two) and not one.equals(other)
    assert one.groupby(["site", "split"]).size().to_dict() == {
        ("A", "test"): 10, ("A", "train"): 26, ("A", "tune"): 4, ("B", "test"): 2, ("B", "train"): 4, ("B", "tune"): 1
    }  # fmt: skip


def test_sites_that_are_not_compared_may_be_small():
    """A brain for HA-GAN may come from a site with one subject; a pair of sites may not."""
    manifest = listed([dict(subject=f"{i}", site="A" if i else "B", split="") for i in range(8)])
    assert split_sites(manifest, 0, pooled=True).table["split"].value_counts().to_dict() == {
        "train": 5,
        "test": 2,
        "tune": 1,
    }
    with pytest.raises(DataError, match="site B has 1 subject"):
        split_sites(manifest, 0)


def test_too_few_subjects_or_sites_are_named():
    manifest = listed([dict(subject=f"{i}", site="A", split="") for i in range(2)])
    with pytest.raises(DataError, match="site A has 2 subject"):
        split_sites(manifest, 0)
    with pytest.raises(DataError, match="only site A"):
        site_pair(manifest)


WIDTH = load_settings("02", "lesson").pix2pix.width  # lesson 04's models are narrower, and only start there
MODELS = sorted((notebooks_folder() / "pretrained").glob("pix2pix-*"))
SHIPPED = [path for path in MODELS if load(path, "shipped").settings.width == WIDTH]


def test_two_models_ship_and_are_small():
    assert [p.name.rsplit("-", 1)[0] for p in SHIPPED] == ["pix2pix-SIMA", "pix2pix-SIMB"]
    for folder in SHIPPED:
        assert sum(f.stat().st_size for f in folder.iterdir()) < 16e6


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.name)
def test_shipped_model_has_converged(folder):
    """The tuning L1 changes by less than 1 % over the last fifth of training."""
    history = load(folder, "shipped").history
    late = history[history["step"] >= 0.8 * history["step"].max()]["tune_l1"]
    assert abs(late.iloc[-1] / late.iloc[0] - 1) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.name)
def test_shipped_model_fits_the_profile_and_beats_the_baselines(folder, tmp_path):
    """In its domain, on four test subjects: 3 dB above copying FLAIR, T2 or the mean T1, and its key is the lesson's."""
    lesson = open_lesson("02", "lesson", out_dir=tmp_path)
    model, s = load(folder, "shipped"), lesson.settings
    assert all(getattr(model.settings, k) == getattr(s.pix2pix, k) for k in ("width", "steps", "loss", "learning_rate"))
    manifest = simulated_dataset(dict(train=4, test=4), tuple(s.shape), s.spacing, folder=tmp_path / "data")
    model.require(lesson_contract(lesson, manifest))
    site = folder.name.split("-")[1]
    train, test = (volumes(manifest, model.contract, site, split) for split in ("train", "test"))
    own = score_subjects(lambda sample: predict(model.networks["generator"], sample), test, test)["psnr"].mean()
    for make in (copy_input(0), copy_input(1), mean_target(train)):
        assert own > score_subjects(make, test, test)["psnr"].mean() + 3


def own(tmp_path, text):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.csv").write_text(text)
    return open_lesson("01", "quick", data_dir=tmp_path / "data", out_dir=tmp_path / "out")


def test_inputs_follow_from_what_the_data_has():
    manifest = listed(dict(flair=["a", ""], t2=["b", "b"], pd=["", "c"], t1=["d", "d"]))
    assert pair_inputs(manifest) == ("flair", "t2") and pair_inputs(manifest.select(pd="c")) == ("t2", "pd")
    assert pair_inputs(manifest.replace(manifest.table.drop(columns="t1"))) is None


def test_data_without_pairs_gives_way_or_is_refused(tmp_path, capsys):
    lesson = own(tmp_path, "subject,site,ct\n" + "".join(f"p{i},X,p{i}.nii.gz\n" for i in range(4)))
    with pytest.raises(DataError, match="cannot be used in lesson 01 .own: no scan has FLAIR and T2"):
        lesson_manifest(lesson)
    capsys.readouterr()
    assert kind_of(lesson_manifest(lesson, required=False)) == "simulated"
    assert "simulated data takes its place" in capsys.readouterr().out
    chests = lesson_volumes(lesson, "ct")
    assert kind_of(chests) == "real" and sorted(set(chests.table["split"])) == ["test", "train", "tune"]
    assert kind_of(lesson_volumes(lesson, "t1", required=False)) == "simulated"


def test_a_single_site_gives_way_or_is_refused(tmp_path, capsys):
    """A pair of sites is needed: UPENN-GBM alone must not stop lesson 01, which also shows single volumes."""
    rows = [
        f"p{i},{'AB'[i == 0]},f.nii.gz,t.nii.gz,{'y.nii.gz' if i else ''}" for i in range(8)
    ]  # B's one lacks its T1
    lesson = own(tmp_path, "subject,site,flair,t2,t1\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match="cannot be used in lesson 01 .own: only site A; a domain shift needs two"):
        lesson_manifest(lesson)
    capsys.readouterr()
    assert kind_of(lesson_manifest(lesson, required=False)) == "simulated"
    assert "only site A" in capsys.readouterr().out
    assert kind_of(lesson_volumes(lesson, "t1")) == "real"


def test_two_sets_of_one_site_each_are_a_pair(tmp_path):
    for i in range(3):
        for name in (f"UPENN-GBM-0000{i}_11", f"UCSF-PDGM-000{i}"):
            for modality in ("FLAIR", "T1", "T2"):
                (tmp_path / "d" / name).mkdir(parents=True, exist_ok=True)
                (tmp_path / "d" / name / f"{name}_{modality}.nii.gz").write_bytes(b"x")
    lesson = open_lesson("01", "quick", data_dir=tmp_path / "d", out_dir=tmp_path / "out")
    assert set(lesson_manifest(lesson).table["site"]) == {"UPENN", "UCSF"}


def test_scans_that_lack_an_input_are_left_out_and_counted(tmp_path, capsys):
    rows = [f"p{i},{'AB'[i % 2]},f.nii.gz,t.nii.gz,{'y.nii.gz' if i else ''}" for i in range(8)]
    manifest = lesson_manifest(own(tmp_path, "subject,site,flair,t2,t1\n" + "\n".join(rows) + "\n"))
    assert len(manifest) == 7 and "1 of 8 scans lack one of flair, t2, t1" in capsys.readouterr().out


def test_sites_can_be_chosen(tmp_path):
    rows = "".join(
        f"{s}{i},{s},f.nii.gz,t.nii.gz,y.nii.gz\n" for s, n in (("P", 9), ("Q", 8), ("R", 3)) for i in range(n)
    )
    lesson = own(tmp_path, "subject,site,flair,t2,t1\n" + rows)
    assert set(lesson_manifest(lesson).table["site"]) == {"P", "Q"}
    lesson = open_lesson(
        "01", "quick", data_dir=lesson.data_dir, out_dir=tmp_path / "o", overrides=dict(real_sites=["P", "R"])
    )
    assert set(lesson_manifest(lesson).table["site"]) == {"P", "R"}


@pytest.mark.parametrize("lesson", ["05", "06", "07"])
def test_lessons_of_volumes_refuse_too_few_in_their_first_cell(tmp_path, lesson):
    fewest = fewest_subjects(lesson)
    rows = [f"p{i},X,p{i}.nii.gz\n" for i in range(fewest)]
    (tmp_path / "data").mkdir()
    for count in (fewest - 1, fewest):
        (tmp_path / "data" / "manifest.csv").write_text("subject,site,ct\n" + "".join(rows[:count]))
        opened = open_lesson(lesson, "quick", data_dir=tmp_path / "data", out_dir=tmp_path / "out")
        if count == fewest:
            require_data(opened)
        else:
            with pytest.raises(DataError, match=f"CT has {count} subject.*lesson {lesson} needs at least {fewest} "):
                require_data(opened)


def test_sites_that_are_not_there_are_named(tmp_path):
    lesson = own(
        tmp_path, "subject,site,flair,t2,t1\n" + "".join(f"{s}{i},{s},f,t,y\n" for s in "AB" for i in range(3))
    )
    for sites in (["A", "C"], ["A"], ["A", "A"]):
        opened = open_lesson(
            "02", "quick", data_dir=lesson.data_dir, out_dir=tmp_path, overrides=dict(real_sites=sites)
        )
        with pytest.raises(DataError, match="are not two of its sites A, B; correct the setting real_sites"):
            require_data(opened)


def test_copies_end_a_lesson_and_are_not_replaced_by_simulated_data(tmp_path):
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        nib.save(nib.Nifti1Image(rng.uniform(1, 9, (4, 4, 4)), np.eye(4)), tmp_path / "data" / f"p{i}.nii.gz")
    rows = "".join(f"p{i},X,p{min(i, 4)}.nii.gz\n" for i in range(6))  # the last one names the file of the fifth
    (tmp_path / "data" / "manifest.csv").write_text("subject,site,t1\n" + rows)
    lesson = open_lesson("05", "quick", data_dir=tmp_path / "data", out_dir=tmp_path / "out")
    with pytest.raises(DataError, match="p4.*p5"):
        lesson_volumes(lesson, "t1", required=False)


def test_the_sites_that_msd_will_have_are_foreseen():
    """Every second complete scan gets the simulated shift; the third lacks a contrast and does not count."""
    rows = [
        dict(subject=f"p{i}", site="MSD", split="", dataset="msd_task01", flair="f", t1="t", t2="u", seg="")
        for i in range(4)
    ]
    manifest = listed([row | dict(t1ce="" if i == 2 else "g") for i, row in enumerate(rows)])
    found = foreseen(manifest).table
    assert found["subject"].tolist() == ["p0", "p1", "p3"] and found["site"].tolist() == ["MSD", "MSD-shifted", "MSD"]
