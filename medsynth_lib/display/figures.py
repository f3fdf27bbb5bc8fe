"""Figures that more than one lesson draws: grids of slices, difference maps, learning curves."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from medsynth_lib.display.volume import PLANES, Window

Rows = Sequence[Sequence[np.ndarray | None]]  # of pictures; None leaves a gap


def slice_of(volume: ArrayLike, plane: str = "axial", index: int | None = None) -> np.ndarray:
    """Take one plane of a volume as a picture.

    Args:
        volume: (1, x, y, z) or (x, y, z) in RAS order.
        plane: "axial", "coronal" or "sagittal".
        index: slice number along the plane's fixed axis; None takes the middle one.

    Returns:
        The picture (rows, columns), the first row lowest.
    """
    array = np.asarray(volume)
    array = array.reshape(array.shape[-3:])
    fixed = PLANES[plane][0]
    return array.take(array.shape[fixed] // 2 if index is None else index, fixed).T


def tumour_slice(sample: Mapping[str, torch.Tensor]) -> int:
    """Choose the axial slice through the middle of a sample's tumour.

    Args:
        sample: "y" (1, x, y, z), and where there is a tumour its labels "seg".

    Returns:
        The slice number; without a tumour, the middle of the volume.
    """
    tumour = np.argwhere(np.asarray(sample["seg"][0]) > 0) if "seg" in sample else np.empty((0, 3))
    return int(np.median(tumour[:, 2])) if len(tumour) else sample["y"].shape[-1] // 2


def synthesis_slices(
    sample: Mapping[str, torch.Tensor], synthetic: Sequence[torch.Tensor]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Take the slice through a sample's tumour from its images and from what was synthesised.

    Args:
        sample: "x" (c, x, y, z), "y" and "mask" (1, x, y, z), "seg" where there is one.
        synthetic: volumes (1, x, y, z).

    Returns:
        Pictures of inputs, truth and synthetic volumes, and pictures of synthetic minus true inside the brain.
    """
    z = tumour_slice(sample)
    pictures = [slice_of(v, index=z) for v in (*sample["x"], sample["y"], *synthetic)]
    return pictures, [slice_of((v - sample["y"]) * sample["mask"], index=z) for v in synthetic]


def title_each(figure: Figure, titles: Sequence[str]) -> None:
    """Write a title above each of a figure's axes in their order, not above a colour bar."""
    for axis, title in zip(figure.axes, titles, strict=False):
        axis.set_title(title, fontsize=9)


def bare(axis: Axes) -> None:
    """Take ticks and frame off an axis that shows a picture."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def slice_grid(
    rows: Rows,
    row_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
    cmap: str | Colormap = "gray",
    window: Window | str = (0, 1),
    size: float = 1.9,
    title: str = "",
    colour_label: str | None = None,
) -> Figure:
    """Draw a grid of pictures on one shared intensity scale.

    Args:
        rows: pictures (rows, columns), row by row of the grid; None leaves a gap.
        row_names: text at the left of each row.
        column_names: text above each column.
        cmap: matplotlib's colours.
        window: (low, high) of the shared scale; "own" scales each picture to its own 99.7th percentile.
        size: width of a picture in inches.
        title: text above the figure.
        colour_label: text of the shared colour bar; None draws no bar.
    """
    n_rows, n_columns = len(rows), max(map(len, rows))
    # One aspect for all: that of the first picture.
    height, width = next(p.shape for row in rows for p in row if p is not None)
    figsize = (size * n_columns, size * height / width * n_rows + 0.4)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=figsize, squeeze=False, layout="constrained")
    for i, row in enumerate(rows):
        for j, axis in enumerate(axes[i]):
            bare(axis)
            if j == 0 and row_names:
                axis.set_ylabel(row_names[i], fontsize=9)
            if i == 0 and column_names:
                axis.set_title(column_names[j], fontsize=9)
            if j >= len(row) or row[j] is None:
                continue
            low, high = (0, np.percentile(row[j][row[j] > 0], 99.7)) if isinstance(window, str) else window
            picture = axis.imshow(row[j], origin="lower", cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    if colour_label:
        figure.colorbar(picture, ax=axes, aspect=12 * n_rows, label=colour_label)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def recovery_panels(
    real: ArrayLike,
    recovered: dict[str, ArrayLike],
    spacing: ArrayLike,
    window: Window = (0, 1),
    spread: float = 0.5,
    unit: str = "intensity",
    title: str = "",
) -> Figure:
    """Draw a real volume, each recovered one and their differences in three planes (Fig. 4).

    Args:
        real: (1, x, y, z).
        recovered: volumes (1, x, y, z) by name.
        spacing: voxel size (3) in mm; it gives each plane its true proportions.
        window: (low, high) of the grey scale that all volumes share.
        spread: half the range of the colours that all differences share, in the volumes' unit.
        unit: text of the colour bars.
        title: text above the figure.
    """
    pictures = [("real", real)] + [pair for n, v in recovered.items() for pair in ((n, v), ("difference", v - real))]
    figure, axes = plt.subplots(3, len(pictures), figsize=(1.9 * len(pictures) + 1, 6), layout="constrained")
    shown = {}
    for row, (plane, (_, across, up)) in zip(axes, PLANES.items(), strict=True):
        for axis, (name, volume) in zip(row, pictures, strict=True):
            signed = name == "difference"
            low, high, cmap = (-spread, spread, "RdBu_r") if signed else (*window, "gray")
            style = dict(origin="lower", cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
            shown[signed] = axis.imshow(slice_of(volume, plane), aspect=float(spacing[up] / spacing[across]), **style)
            bare(axis)
            if plane == "sagittal":
                axis.set_title(name, fontsize=9)
        row[0].set_ylabel(plane, fontsize=9)
    for signed, label in ((False, unit), (True, f"difference ({unit})")):
        figure.colorbar(shown[signed], ax=axes, shrink=0.6, aspect=25, label=label)
    figure.suptitle(title, fontsize=11)
    return figure


def learning_curves(
    histories: dict[str, pd.DataFrame],
    quantity: str = "tune_l1",
    ylabel: str = "L1 on the tuning subjects",
    logarithmic: bool = True,
) -> Figure:
    """Draw one column of several training histories against the step.

    Args:
        histories: by name; each has the columns ``step`` and ``quantity``.
        quantity: the column.
        ylabel: what the column is, with its unit.
        logarithmic: whether the vertical axis is.
    """
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for name, history in histories.items():
        axis.plot(history["step"], history[quantity], label=name, marker="." if len(history) < 30 else None)
    axis.set(xlabel="optimisation step", ylabel=ylabel, yscale="log" if logarithmic else "linear")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    return figure
