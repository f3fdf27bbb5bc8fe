"""The adaptation study on a tiny pair of simulated sites: every row runs and reads only what it may; scanning again, physics,
style, and what evaluation reads."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medsynth_lib.data.files import nifti
from medsynth_lib.data.preparation import appearance
from medsynth_lib.data.preparation.contract import normalise
from medsynth_lib.data.simulation import protocol
from medsynth_lib.data.simulation.scanner import CAUSES, SITES, mixed_site
from medsynth_lib.experiments.adaptation import cells, methods, recipes
from medsynth_lib.experiments.adaptation.direction import Direction
from medsynth_lib.experiments.adaptation.rescan import scans
from medsynth_lib.experiments.adaptation.runner import evaluate, run_cell
from medsynth_lib.experiments.adaptation.study import after_curve, make_study
from medsynth_lib.experiments.adaptation.target_style import TargetStyle
from medsynth_lib.settings import load_settings

pytestmark = pytest.mark.slow  # the site pair takes seconds to simulate
BRIEF = {"steps": 2, "validate_every": 2}
TINY = {name: BRIEF for name in ("pix2pix", "svae", "svae_slice", "vae3d", "adaptation", "segmenter")}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSYNTH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MEDSYNTH_HEADLESS", "1")
        yield cells.open_study(load_settings("04", "quick", {**TINY, "sites": ["A", "B"]}), "SIMA", "SIMB", 0)


def share(kept, fresh, *names):
    """Give a fresh object what another one has made of these cached properties."""
    for name in names:
        fresh.__dict__[name] = getattr(kept, name)


def may_read_target_t1(method):
    return method.startswith("supervised") or method in ("oracle: target inputs, source T1", "trained on target")


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_row_runs_and_reads_nothing_that_it_must_not(study, method, monkeypatch):
    """A row that saw a test subject, or the target's T1 or labels without saying so in its name, would win by cheating.

    Every row gets a fresh study, so that nothing is remembered from an earlier one; what every row may read and train is shared.
    """
    manifest = study.direction.manifest
    row = make_study(Direction(manifest, study.direction.contract, "SIMA", "SIMB"), study.settings)
    share(study.direction, row.direction, "train", "tune")
    share(study.sources, row.sources, "base")
    read, read_volume = set(), nifti.read_volume

    def recorded(path, **options):
        read.add(path)
        return read_volume(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(nifti, "read_volume", recorded)
        predictor = methods.METHODS[method](row)
    share(study.direction, row.direction, "test")  # from here on test subjects may be read
    share(study.sources, row.sources, "segmenter")

    def checked(sample):
        t1 = predictor(sample)
        assert t1.shape == sample["mask"].shape and t1.isfinite().all()
        assert not t1[~sample["mask"]].any() and t1[sample["mask"]].any()
        return t1

    table = evaluate(row, replace(predictor, make=checked))
    tested = set(manifest.select(split="test").table["subject"])
    files = {scan.path(m): scan for scan in manifest.scans() for m in ("t1", "t1ce", "t2", "flair", "seg")}
    assert read <= set(files)  # the record knows every file
    assert not {files[path]["subject"] for path in read} & tested
    of_target = {path for path in read if files[path]["site"] == "SIMB"}
    assert any(path == files[path].path("t1") for path in of_target) == may_read_target_t1(method)
    if method != "trained on target":
        assert not any(path == files[path].path("seg") for path in of_target)
    assert set(table.index) == tested
    assert np.isfinite(table[["psnr_t", "psnr_s"]].astype(float)).all(axis=None)


def test_a_cell_says_which_row_it_is_and_what_it_took(study):
    table = run_cell(study, "continued training")
    assert set(table["subject"]) == set(study.direction.manifest.select(split="test").table["subject"])
    about = table[["method", "source", "target", "seed", "steps"]].drop_duplicates().to_numpy().tolist()
    assert about == [["continued training", "SIMA", "SIMB", 0, 2]] and (table["seconds"] > 0).all()
    assert (run_cell(study, "no adaptation")["steps"] == 0).all()


def test_no_subject_is_tuned_on_and_tested(study):
    """A subject in two splits, at whichever site, would make every choice on tuning subjects a choice on test subjects."""
    splits = study.direction.manifest.table.groupby("subject")["split"].unique()
    assert (splits.str.len() == 1).all() and {"tune", "test"} <= {split for (split,) in splits}


def images_of(sample):
    return torch.cat([sample["x"], sample["y"]])  # FLAIR, T2, T1


def with_scanners(direction, scanners, source="SIMA", target="SIMB"):
    return Direction(direction.manifest, direction.contract, source, target, scanners)


def rescanned(direction, *causes):
    """Scan the test subjects at the source with some causes of the shift taken from the target."""
    source, target = (direction.scanners[name] for name in (direction.source, direction.target))
    return [sample for (sample,) in scans(direction, [mixed_site(source, target, *causes)])]


def test_subjects_scanned_again_are_those_of_the_manifest(study):
    """Without any cause, the simulation repeats the source's NIfTIs; with all, and the target's noise, the target's.

    Noise and coil field are drawn by the site's name, so this source is called like the target. Files are rounded to int16.
    """
    other = with_scanners(study.direction, {"SIMA": replace(SITES["A"], name="B"), "SIMB": SITES["B"]})
    for again, side in ((rescanned(study.direction), 1), (rescanned(other, *CAUSES), 0)):
        for new, old in zip(again, (t[side] for t in study.direction.test), strict=True):
            assert (new["mask"] == old["mask"]).float().mean() > 0.999
            both = (new["mask"] & old["mask"])[0]
            assert (images_of(new) - images_of(old))[:, both].abs().max() < 0.01


def test_a_subject_scanned_at_several_sites_is_that_of_each_alone(study):
    a, b = (study.direction.scanners[name] for name in ("SIMA", "SIMB"))
    for first, second in ((a, b), (b, a)):
        together = next(scans(study.direction, iter([first, second])))
        alone = [next(scans(study.direction, [site]))[0] for site in (first, second)]
        assert all(torch.equal(x["x"], y["x"]) for x, y in zip(together, alone, strict=True))


def test_every_cause_is_taken_over(study):
    """A target with thick slices, named like the source so that both draw the same noise and coil field: with all causes its
    scans are met exactly, and not without any one of them. Left out unnoticed, a cause would be missing from the split gap."""
    thick = replace(SITES["B"], name="A", fwhm=dict.fromkeys(SITES["B"].fwhm, (6, 6, 18)))
    scanners = {"SIMA": SITES["A"], "SIMB": thick}
    there = with_scanners(study.direction, scanners)
    target = rescanned(with_scanners(study.direction, scanners, "SIMB", "SIMA"))

    def error(causes):
        """Mean absolute distance to the target's scans in the brain, one number a modality."""
        pairs = list(zip(rescanned(there, *causes), target, strict=True))
        return torch.stack([(images_of(a) - images_of(b))[:, b["mask"][0]].abs().mean(1) for a, b in pairs]).mean(0)

    assert (error(CAUSES) < 1e-6).all()
    for cause in ("contrast", "resolution", "noise", "coil field"):  # gain is normalised away
        assert (error([c for c in CAUSES if c != cause]) > 0.002).all(), cause


def test_one_cause_moves_t1_less_than_all(study):
    home = rescanned(study.direction)

    def distance(*causes):
        pairs = zip(rescanned(study.direction, *causes), home, strict=True)
        return np.mean([float((a["y"] - b["y"])[a["mask"]].abs().mean()) for a, b in pairs])

    assert 0 < distance("noise") < distance("contrast") <= distance("contrast", "noise", "coil field") + 0.01


def test_mapped_t1_comes_nearer_to_the_true_target_t1(study):
    """With the simulator's own relaxation values as literature: mean absolute error in the brain of the same subjects."""
    curve = study.physics.curve(fit=False)
    raw = [v[0] for v in study.direction.scanner_units("SIMA", "test", ("t1",))]
    before, after = [], []
    for t1, (target, source, _) in zip(raw, study.direction.test, strict=True):
        both = target["mask"] & source["mask"]
        mapped = normalise(torch.from_numpy(protocol.map_t1(t1, curve))[None], "percentile")
        before.append(float((source["y"] - target["y"])[both].abs().mean()))
        after.append(float((mapped - target["y"])[both].abs().mean()))
    assert np.mean(after) < 0.8 * np.mean(before)


def test_between_equal_protocols_nothing_is_mapped(study):
    same = protocol.protocol_curve(SITES["A"], SITES["A"], protocol.literature(), protocol.literature())
    assert torch.allclose(study.physics.mapped_t1(same), study.direction.source_t1, atol=1e-4)
    x, y = study.physics.output_curve(same)
    assert np.allclose(x, y, atol=1e-6)


def test_a_curve_for_another_scanner_leaves_the_study_alone(study):
    usual, other = study.physics.curve(fit=False), study.physics.curve(fit=False, target=SITES["C"])
    assert not np.allclose(usual[1], other[1])
    assert all(np.array_equal(a, b) for a, b in zip(usual, study.physics.curve(fit=False), strict=True))


def test_the_literature_is_fitted_once(study, monkeypatch):
    first = study.physics.curve()
    monkeypatch.setattr(protocol, "fitted_relaxation", None)  # a second fit would fail
    assert all(np.array_equal(a, b) for a, b in zip(first, study.physics.curve(), strict=True))
    assert not np.allclose(first[1], study.physics.curve(fit=False)[1])


def test_target_style_has_the_targets_histogram_and_keeps_t1(study):
    styled, train = study.style.train, study.direction.train
    found = appearance.quantiles([s["x"] for s in styled], [s["mask"] for s in styled])
    assert np.allclose(found, study.style.input_quantiles[1], atol=0.02)
    assert not np.allclose(found, study.style.input_quantiles[0], atol=0.02)
    assert all(torch.equal(a["y"], b["y"]) for a, b in zip(styled, train, strict=True))


def test_tuning_subjects_are_styled_like_training_subjects(study):
    """Curve and noise come from training and adaptation sets only; applied to others they still bring the target's histogram."""
    tune = study.direction.tune
    styled, wanted = study.style.styled(tune), study.style.input_quantiles[1]

    def distance(samples):
        found = appearance.quantiles([s["x"] for s in samples], [s["mask"] for s in samples])
        return np.abs(found - wanted).mean(1)  # one number an input

    assert len(styled) == len(tune) and (distance(styled) < 0.03).all()
    assert (distance(styled) < 0.6 * distance(tune)).all()
    for new, old in zip(styled, tune, strict=True):
        assert torch.equal(new["y"], old["y"]) and not new["x"][:, ~new["mask"][0]].any()


def test_a_style_is_that_of_its_seed_alone(study):
    """Noise and its quantiles are drawn by one seed, whichever other styles were made and asked before."""
    first, second, again = (TargetStyle(study.direction, seed) for seed in (0, 1, 1))
    assert torch.equal(first.train[0]["x"], study.style.train[0]["x"])
    assert not torch.equal(second.train[0]["x"], first.train[0]["x"])
    assert torch.equal(again.styled(study.direction.tune)[0]["x"], second.styled(study.direction.tune)[0]["x"])


def test_a_study_cannot_be_changed(study):
    for part in (study, study.direction, study.sources, study.style, study.physics):
        with pytest.raises(AttributeError):
            part.seed = 1


def test_predictors_never_see_the_targets_t1_or_labels(study):
    """`evaluate` hides them; a perfect predictor of the source's T1 scores endlessly high against Y_s alone."""
    seen = []
    truth = {id(t["x"]): s["y"] for t, s, _ in study.direction.test}

    def make(sample):
        seen.append(set(sample))
        return truth[id(sample["x"])]

    table = evaluate(study, make)
    assert all(keys.isdisjoint({"y", "seg"}) for keys in seen) and len(table) == len(study.direction.test)
    assert np.isinf(table["psnr_s"].astype(float)).all() and np.isfinite(table["psnr_t"].astype(float)).all()
    assert {"dice", "wt_ratio", "lesion_contrast", "tumour_psnr_t", "scale_free_psnr_s"} <= set(table)


def test_every_row_starts_from_the_same_model_and_leaves_it_alone(study):
    before = {k: v.clone() for k, v in study.sources.base.state_dict().items()}
    assert recipes.course(study).steps == 2
    recipes.supervised(study, [study.direction.adapt_pairs[0]])
    assert all(torch.equal(v, before[k]) for k, v in study.sources.base.state_dict().items())
    assert study.direction.adapt.contract.target is None and "y" not in study.direction.adapt[0]


def test_a_given_generator_takes_the_place_of_the_trained_one(study):
    given = torch.nn.Sequential()  # empty, and so of length 0
    assert make_study(study.direction, study.settings, given=given).sources.base is given


def test_a_curve_follows_the_predictor(study):
    """The predictor of "physics on the output" is that of the source model, its output mapped point by point."""
    base = methods.no_adaptation(study)
    sample = study.direction.test[0][0]
    curve = study.physics.curve(fit=False)
    mapped, plain = after_curve(study, base, curve)(sample), base(sample)
    x, y = study.physics.output_curve(curve)
    inside = sample["mask"]
    assert np.allclose(mapped[inside], np.interp(plain[inside], x[0], y[0]), atol=1e-6) and not mapped[~inside].any()
