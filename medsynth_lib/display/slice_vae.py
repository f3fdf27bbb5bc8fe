"""Figures of lesson 03: reconstructions with their errors, widths of posteriors, correlation across slices."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from medsynth_lib.display.figures import bare


def reconstructions(pictures: Mapping[str, np.ndarray], title: str, spread: float = 0.5) -> Figure:
    """Draw a true slice and its reconstructions, with the errors below.

    Args:
        pictures: slices (rows, columns) in [0, 1] by name; the first is the truth.
        title: text above the figure.
        spread: half the range of the errors' colours.
    """
    figure, axes = plt.subplots(2, len(pictures), figsize=(11.5, 5.4), layout="constrained")
    truth = next(iter(pictures.values()))
    for (top, bottom), (name, picture) in zip(axes.T, pictures.items(), strict=True):
        grey = top.imshow(picture, origin="lower", cmap="gray", vmin=0, vmax=1)
        colours = bottom.imshow(picture - truth, origin="lower", cmap="RdBu_r", vmin=-spread, vmax=spread)
        top.set_title(name, fontsize=12)
        bare(top)
        bare(bottom)
    axes[1, 0].set_visible(False)  # The truth has no error.
    axes[1, 1].set_ylabel("error", fontsize=12)
    axes[0, 1].set_ylabel("reconstruction", fontsize=12)
    figure.colorbar(grey, ax=axes[0], label="normalised intensity")
    figure.colorbar(colours, ax=axes[1], label="reconstruction minus T1", extend="both")
    figure.suptitle(title, fontsize=13)
    return figure


def posterior_widths(sigmas: Mapping[str, ArrayLike], title: str) -> Figure:
    """Draw how the standard deviations of posteriors are distributed, beside the prior's.

    Args:
        sigmas: standard deviations, one an element of the codes, by training.
        title: text above the axis.
    """
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for name, values in sigmas.items():
        percent = np.full(len(values), 100 / len(values))
        axis.hist(values, np.geomspace(0.01, 10, 61), weights=percent, histtype="step", label=name)
    axis.axvline(1, color="black", linestyle=":", label="prior")
    axis.set(xscale="log", xlabel="posterior's standard deviation sigma", ylabel="elements of the codes (%)")
    axis.set_title(title, fontsize=11)
    axis.legend()
    return figure


def slice_correlation(correlation: ArrayLike, plane: str, title: str) -> Figure:
    """Draw the correlation of codes (slices, slices) between the slices of a volume, -1 to 1."""
    figure, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    picture = axis.imshow(correlation, cmap="RdBu_r", vmin=-1, vmax=1, origin="lower")
    axis.set(xlabel=f"{plane} slice number", ylabel=f"{plane} slice number")
    axis.set_title(title, fontsize=11)
    figure.colorbar(picture, label="correlation, mean over coordinates")
    return figure
