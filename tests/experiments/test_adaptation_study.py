"""The adaptation study on a tiny pair of simulated sites: every row runs and reads only what it may; scanning again, physics,
style, and what evaluation reads."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medsynth_lib.data.files import nifti
from medsynth_lib.data.preparation import appearance
from medsynth_lib.data.simulation import protocol
from medsynth_lib.data.simulation.scanner import CAUSES, SITES
from medsynth_lib.experiments.adaptation import study as uda
from medsynth_lib.experiments.lesson_data import lesson_contract, lesson_manifest
from medsynth_lib.settings import load_settings


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSYNTH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MEDSYNTH_HEADLESS", "1")
        plain = load_settings("04", "quick")
        brief = {"steps": 2, "validate_every": 2}
        short = {name: getattr(plain, name) | brief for name in ("svae", "svae_slice", "vae3d")}
        settings = load_settings("04", "quick", {"steps": 2, "adapt_steps": 2, "sites": ["A", "B"], **short})
        lesson = SimpleNamespace(settings=settings, data_dir=None, seed=0, notebook="04")
        frame = lesson_manifest(lesson)
        yield uda.Study(frame, lesson_contract(lesson, frame), settings, "SIMA", "SIMB")


def may_read_target_t1(method):
    return method.startswith("supervised") or method in ("oracle: target inputs, source T1", "trained on target")


@pytest.mark.parametrize("method", uda.METHODS)
def test_every_row_runs_and_reads_nothing_that_it_must_not(study, method, monkeypatch):
    """A row that saw a test subject, or the target's T1 or labels without saying so in its name, would win by cheating.

    Every row gets a fresh Study, so that nothing is remembered from an earlier one; what every row may read and train is shared.
    """
    row = uda.Study(study.frame, study.contract, study.settings, "SIMA", "SIMB")
    row.train, row.tune, row.base = study.train, study.tune, study.base
    root, read, read_volume = study.frame.attrs["root"], set(), nifti.read_volume

    def recorded(path, **options):
        read.add(path)
        return read_volume(path, **options)

    def evaluate(make):
        monkeypatch.setattr(nifti, "read_volume", read_volume)  # from here on test subjects may be read
        row.test, row.segmenter = study.test, study.segmenter

        def checked(sample):
            t1 = make(sample)
            assert t1.shape == sample["mask"].shape and t1.isfinite().all()
            assert not t1[~sample["mask"]].any() and t1[sample["mask"]].any()
            return t1

        return uda.Study.evaluate(row, checked)

    row.evaluate = evaluate
    monkeypatch.setattr(nifti, "read_volume", recorded)
    table = uda.run_cell(row, method)

    tested = set(study.frame["subject"][study.frame["split"] == "test"])
    files = {root / scan[m]: scan for _, scan in study.frame.iterrows() for m in ("t1", "t1ce", "t2", "flair", "seg")}
    assert read <= set(files)  # the record knows every file
    assert not {files[path]["subject"] for path in read} & tested
    of_target = {path for path in read if files[path]["site"] == "SIMB"}
    assert any(path == root / files[path]["t1"] for path in of_target) == may_read_target_t1(method)
    if method != "trained on target":
        assert not any(path == root / files[path]["seg"] for path in of_target)
    assert set(table["subject"]) == tested and (table["method"] == method).all()
    assert np.isfinite(table[["psnr_t", "psnr_s"]].astype(float)).all(axis=None)


def test_nobody_is_tuned_on_and_tested(study):
    """One person in two splits, at whichever site, would make every choice on tuning subjects a choice on test subjects."""
    splits = study.frame.groupby("subject")["split"].unique()
    assert (splits.str.len() == 1).all() and {"tune", "test"} <= {split for (split,) in splits}


def images_of(sample):
    return torch.cat([sample["x"], sample["y"]])  # FLAIR, T2, T1


def test_subjects_scanned_again_are_those_of_the_manifest(study):
    """Without any cause, the simulation repeats the source's NIfTIs; with all, and the target's noise, the target's.

    Noise and coil field are drawn by the site's name, so this source is called like the target. Files are rounded to int16.
    """
    alike = {"SIMA": replace(SITES["A"], name="B"), "SIMB": SITES["B"]}
    other = uda.Study(study.frame, study.contract, study.settings, "SIMA", "SIMB", scanners=alike)
    for again, side in ((study.rescanned(), 1), (other.rescanned(*CAUSES), 0)):
        for new, old in zip(again, (t[side] for t in study.test), strict=True):
            assert (new["mask"] == old["mask"]).float().mean() > 0.999
            both = (new["mask"] & old["mask"])[0]
            assert (images_of(new) - images_of(old))[:, both].abs().max() < 0.01


def test_a_person_scanned_at_several_sites_is_that_of_each_alone(study):
    a, b = (study.scanners[name] for name in ("SIMA", "SIMB"))
    for first, second in ((a, b), (b, a)):
        together = next(study.scans(iter([first, second])))
        alone = [next(study.scans([site]))[0] for site in (first, second)]
        assert all(torch.equal(x["x"], y["x"]) for x, y in zip(together, alone, strict=True))


def test_every_cause_is_taken_over(study):
    """A target with thick slices, named like the source so that both draw the same noise and coil field: with all causes its
    scans are met exactly, and not without any one of them. Left out unnoticed, a cause would be missing from the split gap."""
    thick = replace(SITES["B"], name="A", fwhm=dict.fromkeys(SITES["B"].fwhm, (6, 6, 18)))
    scanners = {"SIMA": SITES["A"], "SIMB": thick}
    there, back = (
        uda.Study(study.frame, study.contract, study.settings, *sites, scanners=scanners)
        for sites in (("SIMA", "SIMB"), ("SIMB", "SIMA"))
    )
    target = back.rescanned()

    def error(causes):
        """Mean absolute distance to the target's scans in the brain, one number a modality."""
        pairs = list(zip(there.rescanned(*causes), target, strict=True))
        return torch.stack([(images_of(a) - images_of(b))[:, b["mask"][0]].abs().mean(1) for a, b in pairs]).mean(0)

    assert (error(CAUSES) < 1e-6).all()
    for cause in ("contrast", "resolution", "noise", "coil field"):  # gain is normalised away
        assert (error([c for c in CAUSES if c != cause]) > 0.002).all(), cause


def test_one_cause_moves_t1_less_than_all(study):
    home = study.rescanned()

    def distance(*causes):
        pairs = zip(study.rescanned(*causes), home, strict=True)
        return np.mean([float((a["y"] - b["y"])[a["mask"]].abs().mean()) for a, b in pairs])

    assert 0 < distance("noise") < distance("contrast") <= distance("contrast", "noise", "coil field") + 0.01


def test_mapped_t1_comes_nearer_to_the_true_target_t1(study):
    """With the simulator's own relaxation values as literature: mean absolute error in the brain of the same subjects."""
    curve = study.curve(fit=False)
    raw = [v[0] for v in study.scanner_units("SIMA", "test", ("t1",))]
    before, after = [], []
    for t1, (target, source, _) in zip(raw, study.test, strict=True):
        both = target["mask"] & source["mask"]
        mapped = uda.normalise(torch.from_numpy(protocol.map_t1(t1, curve))[None], "percentile")
        before.append(float((source["y"] - target["y"])[both].abs().mean()))
        after.append(float((mapped - target["y"])[both].abs().mean()))
    assert np.mean(after) < 0.8 * np.mean(before)


def test_between_equal_protocols_nothing_is_mapped(study):
    same = protocol.protocol_curve(SITES["A"], SITES["A"], protocol.literature(), protocol.literature())
    assert torch.allclose(study.mapped_t1(same), study.source_t1, atol=1e-4)
    x, y = study.output_curve(same)
    assert np.allclose(x, y, atol=1e-6)


def test_target_style_has_the_targets_histogram_and_keeps_t1(study):
    styled = study.target_style
    found = appearance.quantiles([s["x"] for s in styled], [s["mask"] for s in styled])
    assert np.allclose(found, study.input_quantiles[1], atol=0.02)
    assert not np.allclose(found, study.input_quantiles[0], atol=0.02)
    assert all(torch.equal(a["y"], b["y"]) for a, b in zip(styled, study.train, strict=True))


def test_tuning_subjects_are_styled_like_training_subjects(study):
    """Curve and noise come from training and adaptation sets only; applied to others they still bring the target's histogram."""
    styled, wanted = study.styled(study.tune), study.input_quantiles[1]

    def distance(samples):
        found = appearance.quantiles([s["x"] for s in samples], [s["mask"] for s in samples])
        return np.abs(found - wanted).mean(1)  # one number an input

    assert len(styled) == len(study.tune) and (distance(styled) < 0.03).all()
    assert (distance(styled) < 0.6 * distance(study.tune)).all()
    for new, old in zip(styled, study.tune, strict=True):
        assert torch.equal(new["y"], old["y"]) and not new["x"][:, ~new["mask"][0]].any()


def test_predictors_never_see_the_targets_t1_or_labels(study):
    """`evaluate` hides them; a perfect predictor of the source's T1 scores endlessly high against Y_s alone."""
    seen = []
    truth = {id(t["x"]): s["y"] for t, s, _ in study.test}

    def make(sample):
        seen.append(set(sample))
        return truth[id(sample["x"])]

    table = study.evaluate(make)
    assert all(keys.isdisjoint({"y", "seg"}) for keys in seen) and len(table) == len(study.test)
    assert np.isinf(table["psnr_s"].astype(float)).all() and np.isfinite(table["psnr_t"].astype(float)).all()
    assert {"dice", "wt_ratio", "lesion_contrast", "tumour_psnr_t", "scale_free_psnr_s"} <= set(table)


def test_every_row_starts_from_the_same_model_and_leaves_it_alone(study):
    before = {k: v.clone() for k, v in study.base.state_dict().items()}
    study.adapted()
    assert study.steps_done == 2
    study.finetuned([study.adapt_pairs[0]])
    assert all(torch.equal(v, before[k]) for k, v in study.base.state_dict().items())
    assert study.adapt.contract.target is None and "y" not in study.adapt[0]
