"""Figures of lesson 05: HA-GAN's volumes, its training curves, its slabs, and what its samples are like.

Tables by model are dictionaries: title of a panel -> table. A modality is "t1", brains, or "ct", chests.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medsynth_lib.display.figures import slice_grid, slice_of
from medsynth_lib.display.volume import PLANES

SCALES = {"t1": ((-1.0, 1.0), "T1, scaled to [-1, 1]"), "ct": ((-1024.0, 600.0), "HU")}  # grey window, label
LOSSES = {"d": "discriminators", "g": "generator", "e_high": "lam x eq. 6", "e_ground": "lam x eq. 7 + KL"}
CURVES = {
    "GAN losses": ("d", "g"),
    "recovery losses, weighted": ("e_high", "e_ground"),
    "held-out recovery, L1": ("tune_recovery_l1",),
    "$D^H$, real held-out slabs": ("tune_d_real",),
}
UNKNOWING = 2 * np.log(2)  # cross-entropy of two discriminators that answer 1/2
Row = Sequence[tuple[torch.Tensor, str]]  # volumes (1, N, N, N) in [-1, 1], and the plane that is shown of each


def cube_grid(
    rows: Mapping[str, Row], modality: str, title: str = "", columns: Sequence[str] = tuple(PLANES)
) -> Figure:
    """Draw rows of volumes as grey pictures in the modality's units.

    Args:
        rows: by name.
        modality: "t1" or "ct".
        title: of the figure.
        columns: titles of the columns.
    """
    from medsynth_lib.data.preparation.cubes import to_hu  # brings MONAI, which takes seconds to import

    window, unit = SCALES[modality]
    grid = [[slice_of(to_hu(v) if modality == "ct" else v, plane) for v, plane in row] for row in rows.values()]
    return slice_grid(grid, list(rows), columns, window=window, size=1.9, title=title, colour_label=unit)


def all_planes(volume: torch.Tensor) -> Row:
    """Pair a volume with each of the three planes: a row of `cube_grid`."""
    return [(volume, plane) for plane in PLANES]


def training_curves(histories: Mapping[str, pd.DataFrame], title: str = "") -> Figure:
    """Draw training and validation curves of HA-GAN, one line style a model.

    Args:
        histories: of at most three trainings, by name.
        title: of the figure.

    Returns:
        Four panels. Dotted lines are the losses of discriminators that know nothing.
    """
    figure, axes = plt.subplots(1, len(CURVES), figsize=(14, 3), layout="constrained")
    for (panel, names), axis in zip(CURVES.items(), axes, strict=True):
        for style, (model, table) in zip(("-", "--", ":"), histories.items(), strict=False):
            for k, name in enumerate(names):
                axis.plot(table["step"], table[name], style, color=f"C{k}", label=f"{LOSSES.get(name, name)}, {model}")
        axis.set(title=panel, xlabel="step", ylabel="logit" if "D^H" in panel else "loss")
        axis.legend(fontsize=7)
    axes[0].axhline(2 * UNKNOWING, color="C0", linestyle=":")  # on real and on fake volumes
    axes[0].axhline(UNKNOWING, color="C1", linestyle=":")
    figure.suptitle(title)
    return figure


def memory_bars(table: pd.DataFrame, title: str = "") -> Figure:
    """Draw memory by part as stacked bars.

    Args:
        table: MiB, a row a bar, a column a part.
        title: of the horizontal axis.
    """
    figure, axis = plt.subplots(figsize=(9, 2.9), layout="constrained")
    table.plot.barh(stacked=True, ax=axis, colormap="tab10", legend=False)
    axis.set(xlabel=title, ylabel="sub-volume")
    figure.legend(ncols=4, loc="outside upper center", frameon=False)
    return figure


def slab_curves(mismatches: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw how slabs differ from the whole volumes, against their first slice.

    Args:
        mismatches: tables of `slabs.slab_mismatch` by organ.
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.2), layout="constrained")
    for colour, (organ, table) in zip(("C0", "C1"), mismatches.items(), strict=False):
        for style, name in zip(("-", ":"), ("inner slices", "3 slices at a cut"), strict=True):
            axes[0].plot(table.index, table[name], style, color=colour, label=f"{organ}, {name}")
        for axis, name in zip(axes[1:], ("shift of the mean", "ratio of the sd"), strict=True):
            axis.plot(table.index, table[name], color=colour, label=organ)
    titles = (
        "difference of the output (RMS)",
        "mean of a slab: shift in sd of the whole",
        "sd of a slab over that of the whole",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="r")
        axis.legend(fontsize=7)
    return figure


def similarity_boxes(similarities: Mapping[str, Mapping[str, Sequence[float]]], pairs: int) -> Figure:
    """Draw the MS-SSIM of pairs of volumes, a panel an organ.

    Args:
        similarities: organ -> name of the volumes -> one value a pair.
        pairs: how many there are at most.
    """
    figure, axes = plt.subplots(
        1, len(similarities), figsize=(9, 2.8), layout="constrained", sharex=True, squeeze=False
    )
    for axis, (organ, values) in zip(axes[0], similarities.items(), strict=True):
        axis.boxplot(list(values.values()), orientation="horizontal", tick_labels=list(values))
        axis.set(title=f"{organ}, {pairs} pairs at most", xlabel="MS-SSIM of two different volumes")
    return figure


def neighbour_scatter(neighbours: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """Draw the distance of volumes to the nearest training volume, a panel an organ.

    Args:
        neighbours: title of the panel -> name of the volumes -> table of `generation.nearest_neighbours`.
    """
    figure, axes = plt.subplots(1, len(neighbours), figsize=(10, 3), layout="constrained", squeeze=False)
    for axis, (title, tables) in zip(axes[0], neighbours.items(), strict=True):
        for name, table in tables.items():
            axis.scatter(table["distance"], table["share"], s=14, label=name)
        axis.set(title=title, xlabel="RMS distance to the nearest training volume", ylabel="over the median")
        axis.legend(fontsize=8)
    return figure


def volume_boxes(measured: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """Draw volumes of organs and tissues on a log scale, over the mean of the first table.

    Args:
        measured: organ -> name -> table in ml or percent, a row a volume; the first table is that of real volumes.
    """
    figure, axes = plt.subplots(1, len(measured), figsize=(13, 3.6), layout="constrained", width_ratios=(3, 1))
    for axis, (organ, tables) in zip(axes, measured.items(), strict=True):
        scale = next(iter(tables.values())).mean().replace(0, np.nan)
        for k, (name, table) in enumerate(tables.items()):
            grouped_boxes(axis, table / scale, k)
            axis.bar(0, 0, color=f"C{k}", label=name)
        axis.set_xticks(np.arange(len(scale)) + 0.15, scale.index.str.replace("_", " "), rotation=40, ha="right")
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set(title=organ, ylabel="over the held-out mean", yscale="log", ylim=(0.1, 8), yticks=(0.1, 0.3, 1, 3))
        axis.set_yticklabels(["0.1", "0.3", "1", "3"])
        axis.minorticks_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def grouped_boxes(axis: Axes, table: pd.DataFrame, k: int) -> None:
    """Draw one box a column of a table, as the k-th of each group of boxes."""
    data = [column.dropna() for _, column in table.items()]
    style = dict(patch_artist=True, manage_ticks=False, boxprops=dict(facecolor=f"C{k}"))
    style |= dict(medianprops=dict(color="black"), flierprops=dict(markersize=3))
    axis.boxplot(data, positions=np.arange(len(data)) + 0.3 * k, widths=0.25, **style)
