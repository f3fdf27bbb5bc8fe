"""Figures that more than one lesson draws: grids of slices, difference maps, learning curves."""

import matplotlib.pyplot as plt
import numpy as np

from medsynth_lib.display.volume import PLANES


def slice_of(volume, plane="axial", index=None):
    """One plane of a (1, x, y, z) or (x, y, z) RAS volume as a picture (rows up); the middle one by default."""
    array = np.asarray(volume)
    array = array.reshape(array.shape[-3:])
    fixed = PLANES[plane][0]
    return array.take(array.shape[fixed] // 2 if index is None else index, fixed).T


def slice_grid(
    rows, row_names=None, column_names=None, cmap="gray", window=(0, 1), size=1.9, title="", colour_label=None
):
    """A grid of pictures (nested list of 2D arrays; None leaves a gap) on one shared intensity scale.

    ``window`` "own" scales every picture by its own 99.7th percentile. ``colour_label`` adds the shared colour bar.
    """
    n_rows, n_columns = len(rows), max(map(len, rows))
    # one aspect for all: the tallest picture of the first row that has one
    height, width = next(p.shape for row in rows for p in row if p is not None)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(size * n_columns, size * height / width * n_rows + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for i, row in enumerate(rows):
        for j in range(n_columns):
            axis = axes[i, j]
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if j == 0 and row_names:
                axis.set_ylabel(row_names[i], fontsize=9)
            if i == 0 and column_names:
                axis.set_title(column_names[j], fontsize=9)
            if j >= len(row) or row[j] is None:
                continue
            low, high = (0, np.percentile(row[j][row[j] > 0], 99.7)) if window == "own" else window
            picture = axis.imshow(row[j], origin="lower", cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    if colour_label:
        figure.colorbar(picture, ax=axes, aspect=12 * n_rows, label=colour_label)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def recovery_panels(real, recovered, spacing, window=(0, 1), spread=0.5, unit="intensity", title=""):
    """The paper's Fig. 4: three planes of a real volume, of each recovered one, and their differences from it.

    ``real`` (1, x, y, z); ``recovered`` a dictionary by name. Volumes share the grey ``window``, differences the colours from
    -``spread`` to ``spread``. ``spacing`` (3) in mm gives each plane its true proportions.
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
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if plane == "sagittal":
                axis.set_title(name, fontsize=9)
        row[0].set_ylabel(plane, fontsize=9)
    for signed, label in ((False, unit), (True, f"difference ({unit})")):
        figure.colorbar(shown[signed], ax=axes, shrink=0.6, aspect=25, label=label)
    figure.suptitle(title, fontsize=11)
    return figure


def learning_curves(histories, quantity="tune_l1", ylabel="L1 on the tuning subjects", logarithmic=True):
    """Curves of one column of several training histories (name -> DataFrame with ``step``)."""
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for name, history in histories.items():
        axis.plot(history["step"], history[quantity], label=name, marker="." if len(history) < 30 else None)
    axis.set(xlabel="optimisation step", ylabel=ylabel, yscale="log" if logarithmic else "linear")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    return figure
