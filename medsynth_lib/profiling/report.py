"""The report of a ledger: the peak of a training step by parts, by phases and by layers."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

PARTS = ("parameters", "gradients", "optimiser state", "activations", "temporaries", "buffers", "inputs")
MIB, GIB = 2**20, 2**30  # bytes
OUTSIDE = "(outside any layer)"  # of no named module: inputs, second derivatives
OPTIMISER = "optimiser step"


@dataclass
class Report:
    """The memory of one training step, in bytes.

    A tensor belongs to the layer that made it, a gradient or a parameter to its owner.

    Attributes:
        peak: the most that was alive at once.
        parts: the peak by `PARTS`.
        phases: a row a phase: the parts at the phase's own peak, and "peak", their sum.
        layers: a row a module path: what it holds at the step's peak, by parts; "peak", their sum; "most", the most that it
            held at any time.
        timeline: a row an event: the parts, "peak", their sum, and "phase".
        kept: what the step left behind; 0 once training is steady.
        leaked: what is alive after the training is gone; 0 unless something else holds its tensors.
    """

    peak: int
    parts: dict[str, int]
    phases: pd.DataFrame
    layers: pd.DataFrame
    timeline: pd.DataFrame
    kept: int = 0
    leaked: int = 0

    def largest_layer(self) -> str:
        """Name the layer that holds most activations and temporaries together."""
        layers = self.layers.drop(index=[OUTSIDE, OPTIMISER], errors="ignore")
        return (layers["activations"] + layers["temporaries"]).idxmax() if len(layers) else OUTSIDE

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / MIB:.0f}" for name, size in self.parts.items())
        return f"peak {self.peak / MIB:.0f} MiB: {parts}"


def make_report(events: list[tuple]) -> Report:
    """Sum up the events of a ledger, (bytes, Storage, Phase) in their order."""
    timeline = _timeline(events)
    top = int(timeline["peak"].argmax())
    phases = timeline.loc[timeline.groupby("phase", sort=False)["peak"].idxmax()].set_index("phase")
    return Report(
        peak=int(timeline["peak"][top]),
        parts={part: int(timeline[part][top]) for part in PARTS},
        phases=phases.drop(index="", errors="ignore"),
        layers=_layers(events, top),
        timeline=timeline,
    )


def _timeline(events: list[tuple]) -> pd.DataFrame:
    """The parts that are alive after every event, their sum, and the phase."""
    steps = np.zeros((len(events), len(PARTS)), np.int64)
    steps[np.arange(len(events)), [PARTS.index(storage.part) for _, storage, _ in events]] = [e[0] for e in events]
    timeline = pd.DataFrame(steps.cumsum(0), columns=PARTS)
    timeline["peak"], timeline["phase"] = timeline.sum(axis=1), [phase.name for _, _, phase in events]
    return timeline


def _layers(events: list[tuple], top: int) -> pd.DataFrame:
    """What every layer holds after event ``top``, by parts, and the most that it ever held."""
    held = pd.DataFrame(
        {
            "layer": [storage.layer or OUTSIDE for _, storage, _ in events],
            "part": [storage.part for _, storage, _ in events],
            "bytes": [change for change, _, _ in events],
        }
    )
    layers = held[: top + 1].pivot_table(index="layer", columns="part", values="bytes", aggfunc="sum", fill_value=0)
    layers = layers.reindex(columns=PARTS, fill_value=0).assign(peak=layers.sum(axis=1))
    most = held["bytes"].groupby(held["layer"]).cumsum().groupby(held["layer"]).max().rename("most")
    return layers.join(most, how="outer").fillna(0).astype(np.int64)
