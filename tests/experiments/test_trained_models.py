"""Trained models: settings are written and read back, keys change with what matters, and shipped folders are found."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.preparation.contract import Contract
from medsynth_lib.data.preparation.cubes import CubeContract
from medsynth_lib.data.simulation.dataset import SEEDS, describe, describe_ct
from medsynth_lib.experiments import trained_models
from medsynth_lib.experiments.adaptation.sources import Sources
from medsynth_lib.experiments.hagan import LABELLED, NAMES, TrainingSubjects
from medsynth_lib.experiments.trained_models import ALGORITHMS, artefact_key, load, read_settings, save
from medsynth_lib.settings import Pix2PixSettings, load_settings, notebooks_folder
from medsynth_lib.training.segmentation import INPUTS

SHIPPED = sorted(path.parent for path in (notebooks_folder() / "pretrained").glob("*/recipe.yaml"))


def unread(contract, subjects, site, about):
    """A data set of simulated subjects for the key of a model that is only loaded: no file of theirs is read."""
    table = pd.DataFrame(dict(subject=subjects, site=site)).assign(**about)
    return SimpleNamespace(contract=contract, manifest=Manifest(table, Path()))


def drawn(split, count, prefix=""):
    """Names of the first subjects of a split."""
    return [f"{prefix}{seed:05d}" for seed in SEEDS[split][:count]]


def pairs(settings, site, **changes):
    """Training and tuning volumes of a site, of a lesson's settings."""
    contract = Contract(spacing=(settings.spacing,) * 3, size=settings.size, normalisation=settings.normalisation)
    contract, about = replace(contract, **changes), describe(settings.shape, settings.spacing, True)
    return [unread(contract, drawn(split, settings.counts[split]), site, about) for split in ("train", "tune")]


def models_of_pairs():
    second, fourth = load_settings("02", "lesson"), load_settings("04", "lesson")
    for site in ("SIMA", "SIMB"):
        yield f"pix2pix-{site}", second.pix2pix, *pairs(second, site)
        for seed in fourth.sweep_seeds:
            yield f"pix2pix-{site}", replace(fourth.pix2pix, seed=seed), *pairs(fourth, site)
        yield f"segmenter-{site}", fourth.segmenter, *pairs(fourth, site, inputs=INPUTS, target=None)
        yield f"svae2d-{site}", fourth.svae, *pairs(fourth, site)
    yield "svae2d-SIMA", fourth.svae_slice, *pairs(fourth, "SIMA")
    yield "svae3d-SIMA", fourth.vae3d, *pairs(fourth, "SIMA")


def models_of_volumes():
    settings = load_settings("05", "lesson")
    for modality, name in NAMES.items():
        contract = CubeContract(modality, settings.hagan.size)
        ct = modality == "ct"
        about = describe_ct((settings.volume_size,) * 3) if ct else describe(settings.shape, settings.spacing, False)
        tune = drawn("tune", settings.volume_counts["tune"], "SIM" if ct else "")
        site = "SIMCT" if ct else "SIMA"
        yield name, settings.hagan, TrainingSubjects(settings, contract), unread(contract, tune, site, about)
    both = (drawn("train", LABELLED), drawn("tune", settings.volume_counts["tune"]))
    contract, about = CubeContract("t1", settings.hagan.size), describe(settings.shape, settings.spacing, False)
    yield "structures", settings.structures, *(unread(contract, subjects, "SIMA", about) for subjects in both)


def planned():
    """(name, settings, training data, tuning data) of every model that lessons load from the shipped folders."""
    return [*models_of_pairs(), *models_of_volumes()]


@pytest.mark.parametrize(
    "name, settings, train, tune", planned(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_lessons_find_their_shipped_models(name, settings, train, tune):
    """By the lesson's own settings and simulated subjects, without simulating them."""
    folder = notebooks_folder() / "pretrained" / f"{name}-{artefact_key(settings, train, tune)}"
    assert read_settings(folder / "recipe.yaml") == settings


@pytest.mark.parametrize("profile", ["quick", "lesson", "gpu", "paper"])
def test_lessons_03_and_04_share_their_models(profile, monkeypatch):
    """Settings, scans and contract make an artefact's key: equal here, so one s-VAE and one 3D VAE serve both lessons."""
    one, two = (load_settings(number, profile) for number in ("03", "04"))
    for key in ("sites", "shape", "spacing", "size", "normalisation", "svae", "vae3d"):
        assert getattr(one, key) == getattr(two, key), key
    assert all(one.counts[split] == two.counts[split] for split in ("train", "tune"))
    calls = []

    def train_or_load(name, settings, train, tune):
        calls.append((name, settings))
        return SimpleNamespace(networks={"vae": SimpleNamespace(encoder=None)})

    monkeypatch.setattr("medsynth_lib.experiments.adaptation.sources.train_or_load", train_or_load)
    models = Sources(SimpleNamespace(source="SIMA", train=(), tune=()), two, seed=5)
    models.encoder(), models.encoder(two.vae3d)
    assert calls == [("svae2d-SIMA", one.svae), ("svae3d-SIMA", one.vae3d)]  # as in lesson 03, with seed 0


def test_every_shipped_folder_is_of_a_lesson():
    assert {folder.name for folder in SHIPPED} == {f"{name}-{artefact_key(*rest)}" for name, *rest in planned()}


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_folders_load(folder):
    model = load(folder, "shipped")
    assert 0 < model.steps <= model.settings.steps and model.networks
    assert (folder / "weights.safetensors").stat().st_size <= 16e6


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_settings_come_back_from_a_file(algorithm, tmp_path):
    settings = ALGORITHMS[algorithm].settings(steps=3, learning_rate=1e-5)
    stored = SimpleNamespace(settings=settings, networks={"one": torch.nn.Linear(1, 1)})
    save(tmp_path, stored, Contract(), {})
    assert read_settings(tmp_path / "recipe.yaml") == settings


def test_unknown_and_missing_settings_are_refused(tmp_path):
    """A default that slipped in for a missing field could be another network than the one whose weights are stored."""
    values = dict(algorithm="pix2pix") | dataclasses.asdict(Pix2PixSettings())
    for changed in (
        values | {"depth": 3},
        {k: v for k, v in values.items() if k != "width"},
        values | {"algorithm": "x"},
    ):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changed))
        with pytest.raises(ValueError, match="depth|width|'x' is unknown"):
            read_settings(tmp_path / "recipe.yaml")


def test_a_key_changes_with_all_that_matters(monkeypatch):
    settings = load_settings("02", "lesson")
    train, tune = pairs(settings, "SIMA")
    plain = settings.pix2pix
    found = {
        "as it is": artefact_key(plain, train, tune),
        "settings": artefact_key(replace(plain, width=16), train, tune),
        "site": artefact_key(plain, *pairs(settings, "SIMB")),
        "subjects": artefact_key(plain, *pairs(replace(settings, counts=settings.counts | {"train": 31}), "SIMA")),
        "simulation": artefact_key(plain, *pairs(replace(settings, shape=(100, 100, 66)), "SIMA")),
        "contract": artefact_key(plain, *pairs(replace(settings, normalisation="minmax"), "SIMA")),
        "algorithm": artefact_key(load_settings("04", "lesson").segmenter, train, tune),
    }
    version = replace(ALGORITHMS["pix2pix"], version=99)
    monkeypatch.setitem(trained_models.ALGORITHMS, "pix2pix", version)
    found["version"] = artefact_key(plain, train, tune)
    monkeypatch.undo()
    monkeypatch.setenv("MEDSYNTH_PRECISION", "bf16-mixed")
    found["precision"] = artefact_key(plain, train, tune)
    assert len(set(found.values())) == len(found)


def test_a_folder_without_a_model_is_not_told_to_be_deleted():
    with pytest.raises(ValueError, match="holds no trained model.*such as .* in it") as caught:
        load(notebooks_folder() / "pretrained", "given")
    assert "delete" not in str(caught.value)
