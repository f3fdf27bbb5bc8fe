"""A study: all that the rows of the comparison may use, for one direction and one seed."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from medsynth_lib.data.preparation import appearance
from medsynth_lib.data.simulation.protocol import Curve
from medsynth_lib.evaluation.synthesis import predict
from medsynth_lib.experiments.adaptation.direction import Direction, Sample
from medsynth_lib.experiments.adaptation.sources import Sources
from medsynth_lib.experiments.adaptation.target_physics import TargetPhysics
from medsynth_lib.experiments.adaptation.target_style import TargetStyle
from medsynth_lib.settings import Lesson04Settings


@dataclass(frozen=True, eq=False)
class Study:
    """What every row of the comparison may use. Its parts are made on first use, kept, and never changed.

    Attributes:
        direction: volumes of both sites.
        sources: models trained on the source.
        style: of the target's inputs.
        physics: curves to the look of the target's T1.
        settings: of the lesson.
        seed: of the source model's training, of the adaptation and of all that a row draws.
    """

    direction: Direction
    sources: Sources
    style: TargetStyle
    physics: TargetPhysics
    settings: Lesson04Settings
    seed: int


def make_study(
    direction: Direction,
    settings: Lesson04Settings,
    seed: int = 0,
    given: nn.Module | None = None,
    physics: TargetPhysics | None = None,
) -> Study:
    """Assemble a study.

    Args:
        direction: the data.
        settings: of the lesson.
        seed: see `Study`.
        given: a generator in the place of the source model of this seed.
        physics: of the same direction, to be shared by studies of several seeds.
    """
    sources, style = Sources(direction, settings, seed, given), TargetStyle(direction, seed)
    return Study(direction, sources, style, physics or TargetPhysics(direction), settings, seed)


@dataclass(frozen=True)
class Predictor:
    """A function that makes a synthetic T1 (1, x, y, z) of a sample, and what its adaptation took."""

    make: Callable[[Sample], torch.Tensor]
    steps: int = 0
    seconds: float = 0.0

    def __call__(self, sample: Sample) -> torch.Tensor:
        return self.make(sample)

    def of(self, change: Callable[[Sample], Sample]) -> "Predictor":
        """Return the predictor of changed samples."""
        return replace(self, make=lambda sample: self.make(change(sample)))

    def then(self, change: Callable[[torch.Tensor, Sample], torch.Tensor]) -> "Predictor":
        """Return the predictor whose output is changed; `change` is given the output and the sample."""
        return replace(self, make=lambda sample: change(self.make(sample), sample))


def generator_predictor(generator: nn.Module, steps: int = 0, seconds: float = 0.0) -> Predictor:
    """Make a predictor of a generator."""
    return Predictor(lambda sample: predict(generator, sample), steps, seconds)


def after_curve(study: Study, predictor: Predictor, curve: Curve) -> Predictor:
    """Put a predictor's output through a curve from the source's to the target's T1 look."""
    x, y = study.physics.output_curve(curve)
    return predictor.then(lambda t1, sample: appearance.apply_curve(t1, sample["mask"], x, y))
