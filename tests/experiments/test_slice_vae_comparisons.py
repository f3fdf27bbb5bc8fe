"""Lesson 03's helpers: a short training is done once, codes are described, mixtures come from different samples."""

import pandas as pd
import pytest
import torch

from medsynth_lib.evaluation.slice_model import SliceModel
from medsynth_lib.experiments import slice_vae_comparisons as comparisons
from medsynth_lib.experiments.trained_models import Trained
from medsynth_lib.models.svae import VAE
from medsynth_lib.settings import Lesson03Settings, SliceVAESettings


def test_each_short_training_is_done_once(monkeypatch):
    asked = []

    def train(settings, train, tune, steps):
        asked.append((settings, steps))
        return VAE(16, 2, width=8), pd.Series(dict(step=steps))

    monkeypatch.setattr(comparisons, "train_short", train)
    lesson = Lesson03Settings()
    short = comparisons.ShortTrainings(lesson, ["train"], ["tune"], seed=3)
    vae, settings, last = short(loss="reversed")
    assert short(loss="reversed")[0] is vae and len(asked) == 1
    assert settings.loss == "reversed" and settings.seed == 3 and asked[0] == (settings, lesson.live_steps)
    assert last["step"] == lesson.live_steps
    assert short(loss="elbo")[0] is not vae and short(seed=4)[1].seed == 4 and short(7, loss="reversed")[2]["step"] == 7
    assert len(asked) == 4


@pytest.mark.parametrize(
    "dims, plane, text",
    [(2, "axial", "8 channels x 2 x 2 (along x, y) = 32 numbers"),
     (2, "sagittal", "8 channels x 2 x 2 (along y, z) = 32 numbers"),
     (3, "axial", "8 channels x 2 x 2 x 2 (along x, y, z) = 64 numbers")],
)  # fmt: skip
def test_a_code_is_described_by_its_axes(dims, plane, text):
    settings = SliceVAESettings(size=16, dims=dims, plane=plane, width=8)
    assert comparisons.describe_code(VAE(16, dims, width=8).eval(), settings) == text


@pytest.mark.parametrize("made, where", [("CPU", "CPU (2 threads)"), ("NVIDIA H200", "NVIDIA H200")])
def test_a_training_is_described(made, where, tmp_path):
    environment, history = dict(device=made, threads=2), pd.DataFrame(dict(step=[1, 2], seconds=[30.0, 90.0]))
    settings = SliceVAESettings(steps=56_000, slices="random 8")
    trained = Trained({}, settings, None, history, environment, tmp_path, "shipped")
    assert (
        comparisons.training_summary(trained) == f"shipped: 56,000 steps, slices a step: random 8; 1.5 min on {where}"
    )


class Told:
    """A decoder whose slices have the value of their code's first number."""

    def __init__(self, size):
        self.size = size

    def eval(self):
        return self

    def parameters(self):
        yield torch.zeros(1)

    def __call__(self, codes):
        return codes[:, :1, :1, :1].expand(-1, 1, self.size, self.size)


def test_a_mixture_takes_each_slice_from_another_sample():
    n, generator = 6, torch.Generator().manual_seed(0)
    model = SliceModel(torch.randn(5, n, 2, 2, 2, generator=generator))
    codes = torch.stack([torch.full((n, 2, 2, 2), k / 10) for k in range(n + 1)])  # sample k is k / 10 everywhere
    model.sample = lambda count, generator: codes[:count]
    both = comparisons.sample_and_mixture(model, Told(n), "axial", generator)
    assert both.shape == (2, n, n, n) and (both[0] == 0).all()
    assert both[1, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    along_x = comparisons.sample_and_mixture(model, Told(n), "sagittal", generator)
    assert along_x[1, :, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_the_fullest_of_the_known_slices():
    settings = SliceVAESettings(size=8, slices="spread 4", plane="coronal")  # slices 0, 2, 4 and 6 of y
    known = torch.zeros(8, 4, 8)
    known[:, 1], known[:2, 3] = 0.1, 0.9
    assert comparisons.fullest_slice(known, settings) == (3, 6)
    assert comparisons.fullest_slice(torch.zeros(8, 4, 8), settings) == (0, 0)
