"""The look of the target's T1, predicted from the settings of both scanners by the signal equations."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from medsynth_lib.data.preparation.contract import normalise
from medsynth_lib.data.simulation import protocol
from medsynth_lib.data.simulation.protocol import Curve
from medsynth_lib.data.simulation.scanner import Site
from medsynth_lib.experiments.adaptation.direction import Direction, Sample


@dataclass(frozen=True, eq=False)
class TargetPhysics:
    """Curves from the source's T1 to the target's look. The target's T1 is never read."""

    direction: Direction

    @cached_property
    def raw_t1(self) -> list[np.ndarray]:
        """T1 (x, y, z) of the source's training set in scanner units."""
        return [v[0] for v in self.direction.scanner_units(self.direction.source, "train", ("t1",))]

    @cached_property
    def observations(self) -> list[tuple]:
        """Sequence, field and measured levels: source T1, T2, FLAIR; target T2, FLAIR."""
        d, found = self.direction, []
        for site, split, modalities in (
            (d.source, "train", ("t1", "t2", "flair")),
            (d.target, d.adapt_split, ("t2", "flair")),
        ):
            scanner = d.scanners[site]
            levels = protocol.measured_levels(d.scanner_units(site, split, modalities, limit=16))
            found += [(scanner.sequences[m], scanner.field, v) for m, v in zip(modalities, levels, strict=True)]
        return found

    @cached_property
    def fitted(self) -> protocol.Relaxation:
        """The literature's relaxation, fitted to the images."""
        return protocol.fitted_relaxation(protocol.literature(), self.observations)

    def curve(self, relaxation: dict | None = None, fit: bool = True, target: Site | None = None) -> Curve:
        """Make the curve from the source's to the target's T1 look.

        Args:
            relaxation: relaxation times; None takes the literature's.
            fit: whether they are fitted to the images first.
            target: another scanner in the place of the target's.
        """
        if relaxation is None:
            relaxation = self.fitted if fit else protocol.literature()
        elif fit:
            relaxation = protocol.fitted_relaxation(relaxation, self.observations)
        scanners = self.direction.scanners
        source, target = scanners[self.direction.source], target or scanners[self.direction.target]
        return protocol.protocol_curve(source, target, relaxation, relaxation)

    def mapped_t1(self, curve: Curve) -> torch.Tensor:
        """Return the source's training T1 in the target's look, normalised: (n, 1, x, y, z)."""
        contract = self.direction.contract
        mapped = (torch.from_numpy(protocol.map_t1(t1, curve))[None] for t1 in self.raw_t1)
        return torch.stack([normalise(v, contract.normalisation, contract.percentiles) for v in mapped])

    def mapped_samples(self, curve: Curve, samples: Sequence[Sample]) -> list[Sample]:
        """Return the training samples, in the training set's order, with T1 in the target's look."""
        return [s | {"y": y} for s, y in zip(samples, self.mapped_t1(curve), strict=True)]

    def output_curve(self, curve: Curve) -> tuple[np.ndarray, np.ndarray]:
        """Return the curve between normalised intensities, (1, 101) each, for a model's output."""
        low, high = self.raw_window
        new_low, new_high = self._window([protocol.map_t1(t1, curve) for t1 in self.raw_t1])
        x = np.linspace(0, 1, 101)
        y = np.interp(low + x * (high - low), *curve)
        return x[None], ((y - new_low) / (new_high - new_low)).clip(0, 1)[None]

    @cached_property
    def raw_window(self) -> np.ndarray:
        """`_window` of the source's T1."""
        return self._window(self.raw_t1)

    def _window(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Mean over subjects of the two percentiles that become 0 and 1, in units of white matter."""
        percentiles = self.direction.contract.percentiles
        return np.mean([np.percentile(t1[t1 > 0], percentiles) / protocol.white_level(t1) for t1 in images], 0)
