"""Figures of lesson 07: how well directions predict, what walks along them do, and what else moves."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medsynth_lib.display.latent import heat_map

LOWEST = -2.0  # R^2 below this value leaves the frame
REACH = 4.0  # standard deviations that a dose-response panel shows at most


def learning_curves(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw R^2 against the number of codes, a panel a domain.

    Args:
        tables: title of the panel -> table with the columns "fitted, ridge 0", "held out, ridge 0" and "held out, chosen
            ridge"; its index is the number of codes as a multiple of their length.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(8, 3), layout="constrained", sharey=True, squeeze=False)
    for (title, table), axis in zip(tables.items(), axes[0], strict=True):
        for name, style in zip(table, ("k:", "tab:red", "tab:blue"), strict=True):
            axis.semilogx(table.index, table[name], style, marker="o", base=2, label=name)
        below = table["held out, ridge 0"][lambda v: v < LOWEST]
        for x, low in below.items():
            arrow = dict(color="tab:red", ha="center", arrowprops=dict(arrowstyle="->"))
            axis.annotate(f"{low:.0f}", (x, LOWEST), (x, LOWEST + 0.3), **arrow)
        axis.set(ylim=(LOWEST, 1.1), xlabel="n / d", title=title)
    axes[0, 0].set_ylabel(f"mean R$^2$ of the factors (cut at {LOWEST:g})")
    axes[0, 0].legend(fontsize=7)
    return figure


def dose_response(
    walked: Mapping[str, torch.Tensor], names: Sequence[str], doses: torch.Tensor, kind: str, title: str = ""
) -> Figure:
    """Draw the factor that each direction should move against the dose that was predicted.

    Args:
        walked: for at most three kinds of directions, factors (k directions, n starts, p doses, k factors).
        names: of the factors.
        doses: (p); the middle one is 0.
        kind: "simulated" or "real", of the population.
        title: of the figure.

    Returns:
        One panel a direction. Thin: one start; thick: the mean of the walks that could be measured from end to end.
    """
    options = dict(layout="constrained", sharey=True, squeeze=False)
    figure, (axes,) = plt.subplots(1, len(names), figsize=(2.9 * len(names), 3.1), **options)
    for i, (factor, axis) in enumerate(zip(names, axes, strict=True)):
        whole = []
        for (name, y), colour in zip(walked.items(), ("tab:blue", "tab:orange", "tab:green"), strict=False):
            whole.append(draw_responses(axis, y[i, :, :, i], doses, colour, name))
        axis.plot(doses, doses, "k:", label="as predicted")
        count = next(iter(walked.values())).shape[1]
        axis.set(title=f"{factor}\nwhole walks: {', '.join(whole)} of {count}", xlabel="dose, predicted (SD)")
    axes[0].set_ylabel(f"measured change from the start\n(SD of the {kind} population)")
    axes[0].legend(fontsize=6)
    axes[0].set_ylim(np.clip(axes[0].get_ylim(), -REACH, REACH))
    figure.suptitle(title, fontsize=11)
    return figure


def draw_responses(axis: Axes, y: torch.Tensor, doses: torch.Tensor, colour: str, name: str) -> str:
    """Draw the responses (n starts, p doses) of one direction from their start on.

    Returns: how many walks are whole.

    Args:
        axis: where to draw.
        y: (n starts, p doses); nan where a volume could not be measured.
        doses: (p), with 0 in the middle.
        colour: of the lines.
        name: of their mean.

    Returns:
        How many starts have all doses, as text.
    """
    whole, y = y.isfinite().all(1), y - y[:, len(doses) // 2, None]
    axis.plot(doses, y.T, color=colour, alpha=0.3, linewidth=0.8)
    axis.plot(doses, y[whole].mean(0), color=colour, linewidth=2, label=name)
    return str(int(whole.sum()))


def entanglement_matrices(
    measured: Mapping[str, torch.Tensor],
    foreseen: Mapping[str, torch.Tensor],
    whole: Mapping[str, Sequence[str]],
    names: Sequence[str],
    title: str = "",
) -> Figure:
    """Draw each kind's matrix as the linear model foresees it, and the measured one below.

    Args:
        measured: (k, k) by kind: row i is a walk along direction i, column j the slope of factor j against the dose.
        foreseen: (k, k) by kind.
        whole: by kind, how many walks of each direction could be measured, as text.
        names: of the factors.
        title: of the figure.
    """
    shown = [foreseen[name] for name in measured] + list(measured.values())
    limit = min(2.0, max(1.0, *(float(matrix.nan_to_num().abs().max()) for matrix in shown)))
    size = (3.3 * len(measured), 6.4)
    figure, axes = plt.subplots(2, len(measured), figsize=size, dpi=70, layout="constrained", squeeze=False)
    for n, ((top, bottom), (name, matrix)) in enumerate(zip(axes.T, measured.items(), strict=True)):
        rows = [""] * len(names) if n else names
        heat_map(top, foreseen[name], rows, names, name.replace(", ", "\n") + "\nforeseen", limit)
        rows = [f"{row} {count}" for row, count in zip(rows, whole[name], strict=True)]
        picture = heat_map(bottom, matrix, rows, names, "measured", limit)
    axes[1, 0].set(xlabel="factor measured", ylabel="direction for (whole walks)")
    figure.colorbar(picture, ax=axes, label="SD of the factor per SD of dose", extend="both")
    figure.suptitle(title, fontsize=11)
    return figure
