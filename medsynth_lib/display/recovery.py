"""Figures of lesson 06: what comes back from a code, structure by structure, and what codes are like."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from medsynth_lib.display.figures import recovery_panels, slice_of

STRUCTURE_MARKERS = {
    "grid alone": "k|",
    "segmenter, against truth": "kx",
    "from the code": "o",
    "mean training volume": "s",
    "X^L up-sampled": "^",
    "features alone, in parts (eq. 6)": "v",
}
QUANTITIES = {
    "lung_ml": "lung (ml)",
    "emphysema_percent": "emphysema (%)",
    "fat_ml": "fat (ml)",
    "bone_ml": "bone (ml)",
}
CODE_COLOURS = {"random": "0.6", "encoded, training": "C0", "encoded, held out": "C1"}


def in_mathematics(name: str) -> str:
    """Write the name of the low-resolution volume as the paper prints it."""
    return name.replace("X^L", "$X^L$")


def mask_pictures(volumes: Mapping[str, tuple[torch.Tensor, np.ndarray, torch.Tensor]]) -> Figure:
    """Draw volumes beside the masks that scores are taken in, in the coronal plane.

    Args:
        volumes: name -> (volume (1, N, N, N), mask (N, N, N), voxel size (3) in mm).
    """
    figure, axes = plt.subplots(1, 2 * len(volumes), figsize=(9, 2.6), layout="constrained")
    for pair, (name, (volume, mask, spacing)) in zip(axes.reshape(-1, 2), volumes.items(), strict=True):
        for axis, picture, what in zip(pair, (volume, mask), (name, "its mask"), strict=True):
            picture = slice_of(picture, "coronal")
            axis.imshow(picture, origin="lower", cmap="gray", aspect=float(spacing[2] / spacing[0]))
            axis.set(xticks=[], yticks=[], title=what)
    return figure


def recovered_volume(
    real: torch.Tensor,
    recovered: Mapping[str, torch.Tensor],
    spacing: torch.Tensor,
    window: tuple[float, float],
    unit: str,
    title: str = "",
) -> Figure:
    """Draw a real volume, what comes back of it, and the differences (Fig. 4).

    Args:
        real: (1, N, N, N) in [-1, 1].
        recovered: the same shape and range, by name.
        spacing: voxel size (3) in mm.
        window: what -1 and 1 stand for, in ``unit``.
        unit: of the values shown.
        title: of the figure.
    """
    low, high = window
    real, *others = (low + (high - low) * (v + 1) / 2 for v in (real, *recovered.values()))
    shown = dict(zip(recovered, others, strict=True))
    return recovery_panels(real, shown, spacing, window, 0.5 * (high - low), unit, title)


def structure_plot(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw the Dice of structures, the smallest below.

    Args:
        table: a row a structure; "voxels", and the columns of `STRUCTURE_MARKERS` that there are.
        title: of the figure.
    """
    table = table.sort_values("voxels")
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for name, style in STRUCTURE_MARKERS.items():
        if name in table:
            axis.plot(table[name], range(len(table)), style, label=in_mathematics(name), markersize=7, alpha=0.85)
    axis.set_yticks(range(len(table)), [f"{name} ({int(table.loc[name, 'voxels'])})" for name in table.index])
    axis.set(xlim=(-0.02, 1.02), xlabel="Dice", title=title)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def before_and_after(before: pd.DataFrame, after: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Draw chest measurements after encoding and decoding against those before.

    Args:
        before: a row a chest, with the columns of `QUANTITIES`.
        after: tables of the same chests, by the way they went.
        title: of the figure.
    """
    figure, axes = plt.subplots(1, len(QUANTITIES), figsize=(12, 3.2), layout="constrained")
    for axis, (column, label) in zip(axes, QUANTITIES.items(), strict=True):
        for (name, table), marker in zip(after.items(), "ovs^", strict=False):
            style = dict(alpha=0.7, markersize=5, label=in_mathematics(name))
            axis.plot(before[column], table[column], marker, **style)
        limits = common_limits([before[column], *(table[column] for table in after.values())])
        axis.plot(limits, limits, color="black", linewidth=0.8)
        axis.set(xlim=limits, ylim=limits, xlabel=f"real: {label}", ylabel="recovered", box_aspect=1)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def common_limits(columns: Sequence[pd.Series]) -> tuple[float, float]:
    """Find limits of an axis that holds all finite values, with 5 % to spare.

    They are (0, 1) for fewer than two values.

    Args:
        columns: numbers; nan counts as missing.

    Returns:
        Lowest and highest value with 5 % of their range to spare; (0, 1) for fewer than two values.
    """
    values = pd.concat(columns).dropna()
    if len(values) < 2:
        return 0.0, 1.0
    return values.min() - 0.05 * np.ptp(values), values.max() + 0.05 * np.ptp(values)


def code_panels(codes: Mapping[str, Mapping[str, torch.Tensor]], title: str = "") -> Figure:
    """Draw what codes are like: their spread, their length, and their first two main directions.

    Args:
        codes: name of a row -> codes (n, d) by the names of `CODE_COLOURS`. The main directions are those of the encoded
            training codes, about their mean.
        title: of the figure.
    """
    figure, axes = plt.subplots(len(codes), 3, figsize=(11, 3.1 * len(codes)), layout="constrained", squeeze=False)
    for row, (name, groups) in zip(axes, codes.items(), strict=True):
        encoded = groups["encoded, training"]
        centre = encoded.mean(0)
        *_, directions = torch.linalg.svd(encoded - centre, full_matrices=False)
        bins = np.linspace(0, max(float(z.norm(dim=1).max()) for z in groups.values()), 40)
        for group, z in groups.items():
            style = dict(color=CODE_COLOURS[group], label=group)
            row[0].plot(np.sort(z.std(0)), **style)
            row[1].hist(z.norm(dim=1), bins=bins, density=True, alpha=0.6, **style)
            row[2].plot(*((z - centre) @ directions[:2].T).T, ".", alpha=0.6, **style)
        row[0].set(xlabel="dimension, sorted", ylabel=f"{name}\nsd over volumes", ylim=(0, None))
        row[1].set(xlabel="length of a code", yticks=[])
        row[2].set(xlabel="first main direction of encoded codes", ylabel="second")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure
