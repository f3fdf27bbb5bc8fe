"""The adaptation command on a small folder: files in the original grid, and one clear error for what does not fit."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medsynth_lib import cli
from medsynth_lib.data.files.nifti import read_volume, write_volume
from medsynth_lib.data.preparation.appearance import quantiles
from medsynth_lib.experiments.adaptation import cells, own_scans, own_volumes
from medsynth_lib.experiments.adaptation.direction import Direction
from medsynth_lib.experiments.adaptation.study import Predictor, make_study
from medsynth_lib.files import DataError
from medsynth_lib.settings import REPO, load_settings

SCANNERS = REPO / "notebooks" / "scanners.yaml"  # of the simulated sites A and B


FEWEST = own_scans.FEWEST
BRIEF = {"steps": 2, "validate_every": 2}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A base model of two steps, and a folder of three unlabelled subjects of site B."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSYNTH_CACHE", str(folder / "cache"))
        patch.setenv("MEDSYNTH_HEADLESS", "1")
        settings = load_settings("04", "quick", {"pix2pix": BRIEF, "adaptation": BRIEF, "sites": ["A", "B"]})
        study = cells.open_study(settings, "SIMA", "SIMB", 0)
        target = study.direction.manifest.select(site="SIMB", split="adapt").head(FEWEST)
        for name in [scan[m] for scan in target.scans() for m in ("flair", "t2")]:
            (folder / "target" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(target.root / name, folder / "target" / name)
        model = study.sources.trained("SIMA").folder
        yield SimpleNamespace(model=model, target=folder / "target", study=study, settings=settings, folder=folder)


def test_it_writes_t1_spread_and_doubt_in_the_original_grid(given, capsys, monkeypatch):
    monkeypatch.setattr("medsynth_lib.settings.load_settings", lambda *_: given.settings)
    out = given.folder / "out"
    arguments = ["--model", given.model, "--target", given.target, "--out", out, "--seeds", "2", "--scanners", SCANNERS]
    assert cli.main(["adapt", *map(str, arguments)]) == 0
    assert "adaptation 2 of 2: 2 steps" in capsys.readouterr().out
    originals = sorted(given.target.rglob("*_t2.nii.gz"))
    written = [sorted(out.glob(f"*_{kind}.nii.gz")) for kind in ("t1", "spread", "do_not_trust")]
    assert [len(w) for w in written] == [len(originals)] * 3
    for original, t1, spread, doubt in zip(originals, *written, strict=True):
        wanted = read_volume(original)
        assert original.parent.name.split("_")[2] in t1.name
        for path in (t1, spread):
            found = read_volume(path)
            assert found.shape == wanted.shape and torch.allclose(found.affine, wanted.affine)
        image, unsure = read_volume(t1), read_volume(doubt, labels=True)
        assert 0 <= image.min() and image.max() <= own_volumes.UNITS and set(unsure.unique().tolist()) <= {0, 1}
        assert (image.as_tensor()[wanted.as_tensor() == 0] == 0).all()


def test_size_and_spacing_of_the_given_settings_count(given, tmp_path, monkeypatch):
    """A lesson whose size is overridden adapts a model of that size; the profile's own size would not fit it."""
    settings = replace(given.settings, size=(28, 32, 24))
    direction = given.study.direction
    contract = replace(direction.contract, size=settings.size)
    smaller = make_study(Direction(direction.manifest, contract, "SIMA", "SIMB"), settings)
    monkeypatch.setattr(own_volumes, "adapted", lambda *_: Predictor(lambda sample: sample["x"][:1]))
    model = smaller.sources.trained("SIMA").folder
    assert len(own_volumes.adapt_folder(model, given.target, tmp_path, settings, seeds=1)) == FEWEST
    with pytest.raises(DataError, match="are not those of the simulated source"):
        own_volumes.adapt_folder(model, given.target, tmp_path, given.settings, seeds=1)


def test_the_example_file_describes_the_simulated_scanners(given):
    """Same curve, and same style of inputs, as with the simulator's own description."""
    known, direction = own_scans.read_scanners(SCANNERS), given.study.direction
    scanners = {"SIMA": known["source"], "SIMB": known["target"]}
    other = make_study(Direction(direction.manifest, direction.contract, "SIMA", "SIMB", scanners), given.settings)
    assert np.allclose(given.study.physics.curve(), other.physics.curve())
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(given.study.style.train, other.style.train, strict=True))


def test_spread_is_that_of_predictors_and_mirror_images():
    """Of a symmetric head, only disagreement between predictors counts; a one-sided predictor disagrees with its mirror."""
    sample = {"x": torch.ones(2, 4, 3, 3), "mask": torch.ones(1, 4, 3, 3, dtype=torch.bool)}
    mean, spread = own_volumes.ensemble([lambda s: 0 * s["x"][:1], lambda s: s["x"][:1]], sample)
    assert torch.allclose(mean, torch.full_like(mean, 0.5)) and torch.allclose(spread, torch.full_like(spread, 0.5))
    ramp = torch.arange(4.0)[None, :, None, None].expand(1, 4, 3, 3)
    mean, spread = own_volumes.ensemble([lambda s: ramp], sample)
    assert torch.allclose(mean, torch.full_like(mean, 1.5)) and torch.allclose(
        spread[0, :, 0, 0], torch.tensor([1.5, 0.5, 0.5, 1.5])
    )


@pytest.mark.parametrize("scanners", [SCANNERS, None], ids=["physics", "histogram"])
def test_doubt_is_measured_on_held_out_source_scans_in_the_targets_style(given, tmp_path, monkeypatch, scanners):
    """On the source's own style the ensemble agrees too well: most of a target brain would be marked 'do not trust'.

    The one predictor here is brighter on the left, so that its spread depends on what it is shown.
    """
    seen, limits = [], []
    trusted_spread, write_case = own_volumes.trusted_spread, own_volumes.write_case

    def predictor(sample):
        return sample["x"][:1] * torch.linspace(0, 1, sample["x"].shape[1])[None, :, None, None]

    def recorded(made, samples):
        seen.extend(samples)
        return trusted_spread(made, samples)

    monkeypatch.setattr(own_volumes, "adapted", lambda *_: Predictor(predictor))
    monkeypatch.setattr(own_volumes, "trusted_spread", recorded)
    monkeypatch.setattr(own_volumes, "write_case", lambda *a: limits.append(a[3]) or write_case(*a))
    own_volumes.adapt_folder(given.model, given.target, tmp_path, given.settings, seeds=1, scanners=scanners)

    direction = given.study.direction
    tune, target = direction.tune, [direction.adapt[i] for i in range(FEWEST)]
    assert [s["subject"] for s in seen] == [s["subject"] for s in tune]

    def distance(samples):
        found, wanted = (quantiles([s["x"] for s in d], [s["mask"] for s in d]) for d in (samples, target))
        return np.abs(found - wanted).mean()

    assert distance(seen) < 0.6 * distance(tune)
    assert limits == [trusted_spread([predictor], seen)] * FEWEST
    spreads = torch.cat([own_volumes.ensemble([predictor], s)[1][s["mask"]] for s in seen])
    assert (spreads <= limits[0]).float().mean() == pytest.approx(0.95, abs=0.005)


@pytest.fixture
def damaged(given, tmp_path):
    """A copy of the target folder whose first subject's images are changed by ``change(data, affine)``."""

    def make(change):
        folder = shutil.copytree(given.target, tmp_path / "target")
        for path in sorted(next(folder.rglob("*_t2.nii.gz")).parent.glob("*.nii.gz")):
            volume = read_volume(path)
            write_volume(path, *change(volume[0].numpy(), volume.affine.numpy()), dtype="float32")
        return folder

    return make


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v, a: (v[::3, ::3, ::3], a @ np.diag([3, 3, 3, 1])), "voxels of"),
        (lambda v, a: (v - 1000.0, a), "strip the skull and undo any z-score"),
        (
            lambda v, a: (np.pad(v, 40, constant_values=0).repeat(2, 0).repeat(2, 1).repeat(2, 2), a),
            "cuts off 52 % of the brain.*larger size",
        ),
        (lambda v, a: ((v > 0).astype(float), a), "mask or a label map"),
    ],
    ids=["spacing", "normalisation", "size", "constant"],
)
def test_target_volumes_that_do_not_fit_are_refused_by_name(given, damaged, change, message):
    folder = damaged(change)
    with pytest.raises(DataError, match=message) as error:
        own_volumes.adapt_folder(given.model, folder, folder / "out", given.settings, seeds=1)
    assert "_flair.nii.gz" in str(error.value) or "_t2.nii.gz" in str(error.value)
    assert not list(folder.glob("out/*.nii.gz"))


def test_too_few_volumes_another_contract_another_model_and_a_bad_scanner_file(given, tmp_path):
    folder = shutil.copytree(given.target, tmp_path / "target")
    shutil.rmtree(next(folder.rglob("*_t2.nii.gz")).parent)  # two are left
    with pytest.raises(DataError, match=f"adaptation needs {FEWEST}"):
        own_volumes.adapt_folder(given.model, folder, tmp_path / "out", given.settings)
    folder = shutil.copytree(given.target, tmp_path / "whole")
    replace(given.study.direction.contract, normalisation="zscore").save(folder / "contract.yaml")
    with pytest.raises(DataError, match="normalisation: 'percentile' against 'zscore'"):
        own_volumes.adapt_folder(given.model, folder, tmp_path / "out", given.settings)
    path = tmp_path / "scanners.yaml"
    path.write_text(SCANNERS.read_text().replace("field: 1.5", "field: 7.0"))
    with pytest.raises(DataError, match=r"scanners.yaml.*field"):
        own_scans.read_scanners(path)


def test_an_error_of_the_command_is_one_line(given, tmp_path, capsys):
    assert (
        cli.main(["adapt", "--model", str(given.model), "--target", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    )
    assert capsys.readouterr().err.startswith("error: ")
