"""DATA_DIR and the shipped models: real layouts take the same path, and what ships is what the lessons say it is."""

import shutil

import pandas as pd
import pytest

from medsynth_lib.course.artefacts import load
from medsynth_lib.course.data import lesson_contract, lesson_manifest, site_pair, split_sites, volumes
from medsynth_lib.course.lesson import open_lesson
from medsynth_lib.course.profiles import notebooks_folder
from medsynth_lib.data.simulate import simulated_dataset
from medsynth_lib.evaluation.synthesis import copy_input, mean_target, predict, score_subjects
from medsynth_lib.files import DataError


@pytest.fixture
def brats_folder(tmp_path):
    """Six simulated subjects under the folder names of two real sites, with nobody at both, and without a manifest."""
    frame = simulated_dataset(dict(train=6), (32, 32, 24), 7.5, folder=tmp_path / "simulated")
    root = tmp_path / "brats" / "HGG"
    for i, site in enumerate(["CBICA", "TCIA02"] * 3):
        row = frame[(frame["site"] == ("SIMA" if site == "CBICA" else "SIMB"))].iloc[i]
        name = f"BraTS19_{site}_{i:03d}_1"
        for modality in ("flair", "t1", "t2", "seg"):  # t1ce is missing: nothing here needs it
            target = root / name / f"{name}_{modality}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "simulated" / row[modality], target)
    return tmp_path / "brats"


def test_data_dir_alone_opens_a_brats_folder(brats_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(brats_folder))
    lesson = open_lesson("02", "quick", out_dir=tmp_path / "out")
    frame = lesson_manifest(lesson)
    assert site_pair(frame) == ("CBICA", "TCIA")
    assert frame.groupby("site")["split"].agg(lambda s: sorted(s)).tolist() == [["test", "train", "tune"]] * 2
    sample = volumes(frame, lesson_contract(lesson), "TCIA", "test")[0]
    assert sample["x"].shape == (2, 40, 40, 30) and sample["seg"].any()


def test_saved_splits_win_and_leaks_are_refused(brats_folder, tmp_path):
    from medsynth_lib.data.manifest import find_cases, write_manifest

    frame = find_cases(brats_folder)
    frame["split"] = ["train", "test"] * 3
    write_manifest(frame, brats_folder / "manifest.csv")
    lesson = open_lesson("02", "quick", data_dir=brats_folder, out_dir=tmp_path / "out")
    assert lesson_manifest(lesson)["split"].tolist() == ["train", "test"] * 3


def test_splits_are_per_subject_and_repeatable():
    frame = pd.DataFrame(
        [dict(subject=f"{s}{i}", site=s, split="") for s, n in (("A", 40), ("B", 7)) for i in range(n)]
    )
    one, two, other = split_sites(frame, 0), split_sites(frame, 0), split_sites(frame, 1)
    assert one.equals(two) and not one.equals(other)
    assert one.groupby(["site", "split"]).size().to_dict() == {
        ("A", "test"): 10, ("A", "train"): 26, ("A", "tune"): 4, ("B", "test"): 2, ("B", "train"): 4, ("B", "tune"): 1
    }  # fmt: skip


def test_too_few_subjects_or_sites_are_named():
    frame = pd.DataFrame([dict(subject=f"{i}", site="A", split="") for i in range(2)])
    with pytest.raises(DataError, match="site A has 2 subject"):
        split_sites(frame, 0)
    with pytest.raises(DataError, match="only site A"):
        site_pair(frame)


SHIPPED = sorted((notebooks_folder() / "pretrained").glob("pix2pix-*"))


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


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda p: p.name)
def test_shipped_model_fits_the_profile_and_beats_the_baselines(folder, tmp_path):
    """In its domain, on four test subjects: 3 dB above copying FLAIR, T2 or the mean T1, and its key is the lesson's."""
    lesson = open_lesson("02", "lesson", out_dir=tmp_path)
    model, s = load(folder, "shipped"), lesson.settings
    assert {k: model.recipe[k] for k in ("width", "steps", "loss", "learning_rate")} == {
        k: getattr(s, k) for k in ("width", "steps", "loss", "learning_rate")
    }
    model.require(lesson_contract(lesson))
    frame = simulated_dataset(dict(train=4, test=4), tuple(s.shape), s.spacing, folder=tmp_path / "data")
    site = folder.name.split("-")[1]
    train, test = (volumes(frame, model.contract, site, split) for split in ("train", "test"))
    own = score_subjects(lambda sample: predict(model.networks["generator"], sample), test, test)["psnr"].mean()
    for make in (copy_input(0), copy_input(1), mean_target(train)):
        assert own > score_subjects(make, test, test)["psnr"].mean() + 3
