"""What lesson 03 asks of slice-VAEs: short trainings side by side, their codes, samples, and the slices they know."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from medsynth_lib.evaluation.slice_model import SliceModel, decode_volumes
from medsynth_lib.experiments.slice_vae import short_settings, train_short
from medsynth_lib.experiments.trained_models import Trained
from medsynth_lib.models.svae import VAE, Decoder
from medsynth_lib.settings import Lesson03Settings, SliceVAESettings
from medsynth_lib.training.svae import AXES, kept

ShortTraining = tuple[VAE, SliceVAESettings, pd.Series]  # on the CPU; its settings; the last row of its history


class ShortTrainings:
    """Train slice-VAEs briefly, from the same start unless the seed is changed, each of them once.

    Args:
        settings: of lesson 03.
        train: training samples.
        tune: held-out samples.
        seed: of all trainings that name no other.
    """

    def __init__(self, settings: Lesson03Settings, train: Sequence, tune: Sequence, seed: int):
        self.settings, self.train, self.tune, self.seed = settings, train, tune, seed
        self.done: dict[tuple, ShortTraining] = {}

    def __call__(self, steps: int | None = None, **changes: Any) -> ShortTraining:
        """Train with changed settings, or return the same training if it was done before.

        Args:
            steps: of the training; None takes ``live_steps`` of the lesson.
            changes: settings of the slice-VAE, such as ``loss="reversed"``.

        Returns:
            The VAE on the CPU, its settings, and the last row of its history.
        """
        steps = steps or self.settings.live_steps
        small = short_settings(self.settings, **{"seed": self.seed} | changes)
        if (steps, small) not in self.done:
            vae, last = train_short(small, self.train, self.tune, steps)
            self.done[steps, small] = vae.cpu(), small, last
        return self.done[steps, small]


def training_summary(trained: Trained) -> str:
    """Describe a slice-VAE's training: its origin, its steps, their time, and the device."""
    settings, made = trained.settings, trained.environment
    device = made["device"] + (f" ({made['threads']} threads)" if made["device"] == "CPU" else "")
    minutes = trained.history["seconds"].iloc[-1] / 60
    return (
        f"{trained.origin}: {settings.steps:,} steps, slices a step: {settings.slices}; {minutes:.1f} min on {device}"
    )


@torch.no_grad()
def describe_code(vae: VAE, settings: SliceVAESettings) -> str:
    """Describe the axes and the numbers of one image's code; the image is a slice or a volume."""
    shape = vae.encoder(torch.zeros(1, 1, *[settings.size] * settings.dims))[0].shape[1:]
    along = [axis for axis, name in zip("xyz", AXES, strict=True) if settings.dims == 3 or name != settings.plane]
    sides = " x ".join(map(str, shape[1:]))
    return f"{shape[0]} channels x {sides} (along {', '.join(along)}) = {shape.numel():,} numbers"


def sample_and_mixture(model: SliceModel, decoder: Decoder, plane: str, generator: torch.Generator) -> torch.Tensor:
    """Sample a volume, and one whose N slices come from N other samples, one from each.

    Args:
        model: of the codes across slices.
        decoder: of the slice-VAE.
        plane: that the slices lie in.
        generator: of the random numbers.

    Returns:
        Both volumes, (2, N, N, N), in [0, 1].
    """
    n = model.shape[0]
    codes = model.sample(n + 1, generator)
    mixed = codes[torch.arange(n) + 1, torch.arange(n)]
    return decode_volumes(decoder, torch.stack([codes[0], mixed]), plane)


def fullest_slice(volume: torch.Tensor, settings: SliceVAESettings) -> tuple[int, int]:
    """Find the slice with most tissue among those that a slice-VAE was trained on.

    Args:
        volume: the known slices alone, (x, y, z).
        settings: of the slice-VAE, which say what is known.

    Returns:
        The place of the slice among the known ones, and its number in the whole volume.
    """
    place = int(volume.movedim(AXES[settings.plane], 0).flatten(1).sum(1).argmax())
    return place, int(kept(torch.arange(settings.size), settings.slices)[place])
