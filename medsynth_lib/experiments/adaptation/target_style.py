"""The style of the target's inputs, and source inputs that take it over: slice thickness, noise and histogram."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from medsynth_lib.data.preparation import appearance
from medsynth_lib.experiments.adaptation.direction import Direction, Sample


@dataclass(frozen=True, eq=False)
class TargetStyle:
    """What source inputs lack to look like the target's, measured on the training and the adaptation set.

    Attributes:
        direction: the data.
        seed: of the noise that is added.
    """

    direction: Direction
    seed: int = 0

    @cached_property
    def input_quantiles(self) -> tuple[np.ndarray, np.ndarray]:
        """Pooled quantiles of brain intensities of the source and of the target, one row an input."""
        both = self.direction.train, self.direction.adapt
        return tuple(appearance.quantiles([s["x"] for s in d], [s["mask"] for s in d]) for d in both)

    @cached_property
    def train(self) -> list[Sample]:
        """The source's training samples in the target's style."""
        return self.styled(self.direction.train)

    def styled(self, samples: Sequence[Sample]) -> list[Sample]:
        """Give source inputs the target's slice thickness, noise and histogram; T1 stays."""
        own, wanted = self.noisy_quantiles, self.input_quantiles[1]
        return [
            s | {"x": appearance.apply_curve(x, s["mask"], own, wanted)}
            for x, s in zip(self.noisy(samples), samples, strict=True)
        ]

    def matched(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return source samples whose inputs have the target's histogram alone."""
        return [s | {"x": appearance.apply_curve(s["x"], s["mask"], *self.input_quantiles)} for s in samples]

    def noisy(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """Return thickened inputs (c, x, y, z) of source samples with the target's noise."""
        rng, sigma = np.random.default_rng(self.seed), self.missing_noise
        return [
            x + s["mask"] * torch.from_numpy(sigma * rng.standard_normal(x.shape)).float()
            for x, s in zip(self.thickened(samples), samples, strict=True)
        ]

    @cached_property
    def noisy_quantiles(self) -> np.ndarray:
        """Pooled quantiles of the training set's thickened and noisy inputs, one row an input."""
        train = self.direction.train
        return appearance.quantiles(self.noisy(train), [s["mask"] for s in train])

    def thickened(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """Return inputs (c, x, y, z) of source samples with slices as thick as the target's."""
        d = self.direction
        own, wanted = (d.scanners[site].fwhm["t2"][2] for site in (d.source, d.target))
        return [appearance.thicker_slices(s["x"], s["mask"], own, wanted, d.contract.spacing[2]) for s in samples]

    @cached_property
    def missing_noise(self) -> np.ndarray:
        """SD of the noise that thickened source inputs lack beside the target's, (c, 1, 1, 1)."""
        train = self.direction.train
        own = [appearance.noise_level(x, s["mask"]) for x, s in zip(self.thickened(train), train, strict=True)]
        wanted = [appearance.noise_level(s["x"], s["mask"]) for s in self.direction.adapt]
        return np.sqrt(np.maximum(np.mean(wanted, 0) ** 2 - np.mean(own, 0) ** 2, 0))[:, None, None, None]
