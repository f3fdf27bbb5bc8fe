"""A training that runs out of memory ends with advice, whatever is trained."""

import inspect

import numpy as np
import pytest
import torch

from medsynth_lib.experiments import trained_models
from medsynth_lib.profiling import planner
from medsynth_lib.settings import AlphaGANSettings, HAGANSettings, Pix2PixSettings


class Data(list):
    contract = type("Contract", (), {"require": lambda self, other: None})()


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """train_or_load, whose training ends in an error; plans are those of `by_setting`, but every network is really made."""

    def by_setting(build, size, batch, sub_volume=None, checkpointing=False, precision="fp32", sample=None):
        given = {
            k: v for k, v in dict(size=size, sub_volume=sub_volume).items() if k in inspect.signature(build).parameters
        }
        with torch.device("meta"):
            algorithm = build(**given)
        share = (sub_volume or 1) / (4 if getattr(algorithm.settings, "lean", False) else 1)
        return type("Report", (), {"peak": 2**40 * batch * share * ((size or 64) / 64) ** 3})

    def train(error, settings, sample=None):
        monkeypatch.setattr(trained_models, "cache_folder", lambda name: tmp_path)
        monkeypatch.setattr(trained_models, "artefact_key", lambda *a: "key")
        monkeypatch.setattr(trained_models.loop, "fit", lambda *a, **k: (_ for _ in ()).throw(error))
        monkeypatch.setattr(planner, "plan", by_setting)
        data = Data([sample])
        trained_models.train_or_load("test", settings, data, data)

    return train


BRAIN = {"x": torch.zeros(2, 16, 16, 12), "y": torch.zeros(1, 16, 16, 12), "mask": torch.ones(1, 16, 16, 12) > 0}
SHORT = dict(steps=1, validate_every=1, batch_size=2)
PIX2PIX = Pix2PixSettings(width=2, loss="l1", **SHORT)
HAGAN = HAGANSettings(size=64, c=4, fraction=1 / 4, latent=8, average=0.999, **SHORT)
ALPHA_GAN = AlphaGANSettings(size=64, latent=8, width=2, widest=8, **SHORT)


@pytest.mark.parametrize("settings, sample, levers", [
    pytest.param(HAGAN, None, ["batch 1, fp32, sub-volume 0.25", "sub-volume 0.125", "32^3, batch 2", "lean form"],
                 marks=pytest.mark.slow),
    (ALPHA_GAN, None, ["64^3, batch 1", "32^3, batch 2"]),
    (PIX2PIX, BRAIN, ["batch 1, fp32, volumes as they are", "bf16 autocast", "checkpointing"]),
])  # fmt: skip
def test_the_course_explains_that_memory_ran_out(failing, settings, sample, levers):
    """Whatever is trained: the same kind of error, with a line for each lever, and the first error as its cause."""
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(torch.OutOfMemoryError, match="Out of memory: the device has") as caught:
        failing(error, settings, sample)
    assert caught.value.__cause__ is error
    for lever in levers:
        assert lever in str(caught.value)


def test_numpy_without_memory_becomes_advice_too(failing):
    with pytest.raises(MemoryError) as caught:
        np.zeros(10**15)
    with pytest.raises(MemoryError, match="Out of memory: the device has"):
        failing(caught.value, ALPHA_GAN)


def test_other_errors_of_a_training_are_left_alone(failing):
    error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ") as caught:
        failing(error, HAGAN)
    assert caught.value is error
