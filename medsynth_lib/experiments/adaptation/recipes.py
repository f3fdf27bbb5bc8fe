"""The recipes by which a study's source model goes on learning: the course's, the paper's two, and a supervised one."""

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from medsynth_lib.experiments.adaptation.direction import Sample
from medsynth_lib.experiments.adaptation.study import Predictor, Study, generator_predictor
from medsynth_lib.experiments.computer import default_fabric
from medsynth_lib.files import cache_folder
from medsynth_lib.settings import PaperCodeSettings, PaperTextSettings, SliceVAESettings
from medsynth_lib.training import loop
from medsynth_lib.training.adaptation import SourceAndTarget, source_posteriors
from medsynth_lib.training.adaptation_course import Course
from medsynth_lib.training.adaptation_paper_code import PaperCode
from medsynth_lib.training.adaptation_paper_text import PaperText


@dataclass(frozen=True, eq=False)
class Latent:
    """What a latent loss needs of the source."""

    encoder: nn.Module  # of a slice-VAE; recipes take a copy
    settings: SliceVAESettings  # its own
    real: torch.Tensor  # T1 (n, 1, x, y, z) that make the prior

    def copied(self, training: bool) -> dict[str, Any]:
        """Copy the encoder in a mode for a recipe.

        Args:
            training: whether batch normalisation uses and moves its statistics.

        Returns:
            The encoder, its settings, and the posteriors that it gives the real T1 in this mode.
        """
        encoder = copy.deepcopy(self.encoder).train(training)
        return dict(encoder=encoder, svae=self.settings, bank=source_posteriors(encoder, self.real, self.settings))


def slice_latent(study: Study, settings: SliceVAESettings | None = None) -> Latent:
    """Take the slice-VAE of the lesson, or of other settings, and the source's T1."""
    return Latent(*study.sources.encoder(settings), study.direction.source_t1)


def course(
    study: Study,
    latent: Latent | None = None,
    source: Sequence[Sample] | None = None,
    limit: int | None = None,
    share: float = 1.0,
    **changes: Any,
) -> Predictor:
    """Adapt the source model by the course's recipe.

    Without a latent loss this is continued training.

    Args:
        study: data and models.
        latent: of the latent loss, which `rho` of the settings weighs.
        source: samples in the place of the training set.
        limit: how many target volumes are used; None: all.
        share: of the usual steps.
        changes: to the lesson's `AdaptationSettings`.
    """
    settings = replace(study.settings.adaptation, **changes)
    settings = replace(settings, steps=max(1, round(share * settings.steps)))
    algorithm = Course(settings, starting_point(study), **latent.copied(training=False) if latent else {})
    data = SourceAndTarget(source or study.direction.train, study.direction.adapt, limit=limit)
    return fit(study, algorithm, data)


def paper_text(study: Study, latent: Latent | None, **changes: Any) -> Predictor:
    """Adapt the source model as the paper's text says, for as many steps as the course's recipe.

    Args:
        study: data and models.
        latent: of the second update; None makes its gradient zero.
        changes: to `PaperTextSettings`.
    """
    settings = replace(PaperTextSettings(steps=study.settings.adaptation.steps), **changes)
    algorithm = PaperText(settings, starting_point(study), **latent.copied(training=True) if latent else {})
    return fit(study, algorithm, SourceAndTarget(study.direction.train, study.direction.adapt, paired=True))


def paper_code(study: Study, latent: Latent | None, **changes: Any) -> Predictor:
    """Adapt the source model as the public code does, for as many steps as the course's recipe.

    Args:
        study: data and models.
        latent: of the second update; None makes its gradient zero.
        changes: to `PaperCodeSettings`.
    """
    lesson = study.settings
    settings = replace(PaperCodeSettings(width=lesson.pix2pix.width, steps=lesson.adaptation.steps), **changes)
    torch.manual_seed(study.seed)  # of the discriminator's first weights
    given = (copy.deepcopy(latent.encoder), latent.settings) if latent else ()
    algorithm = PaperCode(settings, starting_point(study), *given)
    return fit(study, algorithm, SourceAndTarget(study.direction.train, study.direction.adapt, paired=True))


def supervised(study: Study, pairs: Sequence[Sample]) -> Predictor:
    """Fine-tune the source model on pairs, with steps and rates of the course's adaptation."""
    return fit(study, Course(study.settings.adaptation, starting_point(study), reads=("x", "y", "mask")), pairs)


def starting_point(study: Study) -> nn.Module:
    """Copy the source model; every row starts from it and none changes it."""
    return copy.deepcopy(study.sources.base).train()


def fit(study: Study, algorithm: loop.Algorithm, data: Any) -> Predictor:
    """Run the course's loop in a fresh folder; an adaptation is short, so it is not resumed."""
    began, steps = time.perf_counter(), algorithm.settings.steps
    tune = SourceAndTarget(study.direction.tune, study.direction.adapt, limit=1)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        length = dict(steps=steps, seed=study.seed, validate_every=steps)
        loop.fit(algorithm, data, tune, folder, **length, fabric=default_fabric())
    return generator_predictor(algorithm.networks["generator"], steps, time.perf_counter() - began)
