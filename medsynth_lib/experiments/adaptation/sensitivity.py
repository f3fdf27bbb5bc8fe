"""What happens to the mapped output when relaxation times or scanner settings are wrong."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from medsynth_lib.data.preparation.appearance import apply_curve
from medsynth_lib.data.simulation import protocol
from medsynth_lib.data.simulation.physics import Sequence as PulseSequence
from medsynth_lib.data.simulation.protocol import Curve
from medsynth_lib.data.simulation.scanner import Site
from medsynth_lib.evaluation.subjects import psnrs
from medsynth_lib.experiments.adaptation.direction import Sample
from medsynth_lib.experiments.adaptation.target_physics import TargetPhysics

Times = Sequence[Sequence[float | None]]  # ms of CSF, grey and white matter, at 1.5 and at 3 T; None keeps one


def literature_with(name: str, times: Times) -> dict:
    """Replace some relaxation times of the literature.

    Args:
        name: "t1" or "t2".
        times: the new ones.

    Returns:
        A table as `protocol.literature` makes it.
    """
    changed = protocol.literature()
    for field, row in zip((1.5, 3.0), times, strict=True):
        kept = changed[name, field]
        changed[name, field] = np.array([k if v is None else np.log(v) for k, v in zip(kept, row, strict=True)])
    return changed


def with_wrong_setting(scanner: Site, contrast: str, setting: str, factor: float) -> Site:
    """Multiply one setting of a scanner's sequence, such as the TI (ms) of T1, by a factor."""
    sequence = scanner.sequences[contrast]
    wrong = PulseSequence(sequence.kind, sequence.settings | {setting: factor * sequence.settings[setting]})
    return replace(scanner, sequences=scanner.sequences | {contrast: wrong})


class GapOfCurve:
    """Measure the share of a gap that a curve between T1 looks closes, over fixed outputs; a call gives it.

    Args:
        physics: turns a curve between T1 looks into one between normalised intensities.
        outputs: of the source model, each (1, x, y, z) in [0, 1].
        target: the same subjects' samples, with "y" and "mask".
        masks: where images are scored.
        low: PSNR in dB that counts as 0.
        high: PSNR in dB that counts as 1.
    """

    def __init__(
        self,
        physics: TargetPhysics,
        outputs: Sequence[torch.Tensor],
        target: Sequence[Sample],
        masks: Sequence[torch.Tensor],
        low: float,
        high: float,
    ):
        self.physics, self.outputs, self.target, self.masks = physics, outputs, target, masks
        self.low, self.high = low, high

    def __call__(self, curve: Curve) -> float:
        """Send the outputs through a curve, score them, and return (score - low) / (high - low)."""
        x, y = self.physics.output_curve(curve)
        mapped = [apply_curve(o, t["mask"], x, y) for o, t in zip(self.outputs, self.target, strict=True)]
        found = psnrs(mapped, [t["y"] for t in self.target], self.masks).mean()
        return float((found - self.low) / (self.high - self.low))
