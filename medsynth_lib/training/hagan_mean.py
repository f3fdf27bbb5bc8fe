"""A running mean of HA-GAN's generator, which samples are drawn from.

What it changes, and why: an exponential mean of the weights over the steps changes less from step to step than the weights
do. The training itself is not touched. Neither the paper nor its public code has one.
"""

import copy

import torch

from medsynth_lib.settings import HAGANSettings
from medsynth_lib.training.hagan import GENERATOR


class RunningMean:
    """What a running mean adds to `HAGAN` or a departure; name it before them in the bases.

    The means are networks "mean G^A", "mean G^L" and "mean G^H" without an optimiser.
    """

    def __init__(self, settings: HAGANSettings, *given: object) -> None:
        super().__init__(settings, *given)
        for name in GENERATOR:
            if name in self.networks:
                self.networks[f"mean {name}"] = copy.deepcopy(self.networks[name]).requires_grad_(False)

    def take_step(self, names: tuple[str, ...]) -> None:
        """Take the step of these networks; after that of G, move the means to the new weights."""
        super().take_step(names)
        if "G^A" in names:
            self.update_means()

    @torch.no_grad()
    def update_means(self) -> None:
        """Move each mean by 1 - average of its distance to the weights."""
        for name in GENERATOR:
            if name in self.networks:
                pairs = zip(self.networks[f"mean {name}"].parameters(), self.networks[name].parameters(), strict=True)
                for mean, new in pairs:
                    mean.lerp_(new, 1 - self.settings.average)
