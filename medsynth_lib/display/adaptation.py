"""Figures of lesson 04: where the decibels go, what the loss prefers, and every method against its control."""

import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from medsynth_lib.display.figures import slice_of

TRUTHS = ("Y_t", "Y_s")  # target and source T1 of the same subjects
# Patterns of methods' names, of which the first that fits counts; "physics" at the beginning goes before all.
GROUPS = {"VAE": "VAE", "physics": "physics", "bounds": "supervised|oracle|trained on target", "others": "."}
NEAR = 0.5  # dB; differences are drawn linearly up to it and logarithmically beyond


def lost_bars(lost: Mapping[str, pd.DataFrame], kind: str) -> Figure:
    """Draw the PSNR that each cause of the shift costs, by the inputs and by the truth.

    Args:
        lost: tables in dB by the way of counting, with a row a cause.
        kind: what the titles call the data, such as "simulated".
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True, sharex=True)
    for axis, part in zip(axes, ("by the inputs", "by the truth"), strict=True):
        for k, (way, table) in enumerate(lost.items()):
            axis.barh(np.arange(len(table)) + 0.4 * k - 0.2, table[part], height=0.38, label=way)
        axis.axvline(0, color="gray", lw=0.8)
        axis.set(yticks=range(len(table)), yticklabels=table.index, xlabel="PSNR lost (dB)", title=f"{part} ({kind})")
    axes[0].invert_yaxis()
    axes[1].legend()
    return figure


def loss_panels(losses: Mapping[str, pd.DataFrame], reference: str, title: str) -> Figure:
    """Draw what six losses say of the same volumes: mean and standard deviation over subjects.

    Args:
        losses: by name, a row a subject and a column a candidate; a name that ends in W2 is not in nats.
        reference: the candidate whose mean gets a line; the loss prefers what lies left of it.
        title: text above the figure.
    """
    figure, axes = plt.subplots(2, 3, figsize=(10, 4.8), layout="constrained", sharey=True)
    for axis, (name, values) in zip(axes.flat, losses.items(), strict=True):
        axis.errorbar(values.mean(), range(values.shape[1]), xerr=values.std(), fmt="o")
        axis.axvline(values[reference].mean(), color="gray", lw=0.8)
        unit = "squared code units" if name.endswith("W2") else "nats"
        axis.set(yticks=range(values.shape[1]), yticklabels=values.columns, title=name, xscale="log")
        axis.set_xlabel(f"{unit} per latent element")
        axis.xaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 3, 5, 7)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(plt.NullLocator())
        axis.tick_params(axis="x", labelsize=8)
    axes[0, 0].set_ylim(values.shape[1] - 0.5, -0.5)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_seeds(axis: Axes, differences: pd.DataFrame, truth: str) -> None:
    """Draw PSNR minus continued training, a row a method and a marker a seed.

    Args:
        axis: where to draw.
        differences: in dB, a row a method, a column a seed.
        truth: what the PSNR is measured against.
    """
    for k, (seed, values) in enumerate(differences.items()):
        axis.scatter(values, range(len(differences)), label=f"seed {seed}", marker="os^"[k % 3], s=18, alpha=0.8)
    axis.axvline(0, color="gray", lw=1)
    axis.grid(alpha=0.3, which="both")
    label = f"PSNR to {truth} minus continued training (dB)"
    axis.set(yticks=range(len(differences)), yticklabels=differences.index, xlabel=label)
    # Tenths of a dB stand beside rows that are ruined and rows that know T1.
    axis.set_xscale("symlog", linthresh=NEAR, linscale=0.8)
    axis.set_xticks([-10, -2, -0.5, 0, 0.5, 2, 10])
    axis.set_xticks([-0.4, -0.3, -0.2, -0.1, 0.1, 0.2, 0.3, 0.4], minor=True)
    axis.xaxis.set_major_formatter("{x:g}")


def seed_figure(differences: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """Draw each seed of each method against its own control, for both truths.

    Args:
        differences: by truth; as in `draw_seeds`, with the same methods.
        title: text above the figure.
    """
    n = len(next(iter(differences.values())))
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.2 * n + 1.6), layout="constrained", sharey=True)
    for axis, (truth, table) in zip(axes, differences.items(), strict=True):
        draw_seeds(axis, table, truth)
    axes[0].set_ylim(n - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(title, fontsize=10)
    return figure


def group_of(method: str) -> str:
    """Find the group of `GROUPS` that a method belongs to, by its name."""
    if method.startswith("physics"):
        return "physics"
    return next(group for group, pattern in GROUPS.items() if re.search(pattern, method))


def psnr_and_dice(
    ours: pd.DataFrame, paper: Mapping[str, pd.DataFrame], ends: Sequence[str], columns: tuple[str, str]
) -> Figure:
    """Draw Dice against PSNR: our methods, a mark a method and seed, and the paper's Table 2.

    Args:
        ours: a row a method and seed, with the columns ``method``, ``psnr_t`` (dB) and ``dice``.
        paper: tables of the paper by direction, a row a method.
        ends: two methods of the paper that a line joins.
        columns: of the paper's tables, PSNR in dB and Dice.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    groups = ours["method"].map(group_of)
    for marker, group in zip("os^x", GROUPS, strict=True):
        rows = ours[groups == group]
        axes[0].scatter(rows["psnr_t"], rows["dice"], marker=marker, s=18, alpha=0.7, label=group)
    title = "A to B (simulated): a mark a row and seed"
    axes[0].set(xlabel="PSNR to Y_t inside the brain (dB)", ylabel="mean Dice", title=title)
    for label, table in paper.items():
        points = axes[1].scatter(*table[list(columns)].T.to_numpy(), s=22, label=label)
        axes[1].plot(*table.loc[list(ends), list(columns)].T.to_numpy(), color=points.get_facecolor()[0])
    title = "The paper's Table 2 (line: no adaptation to s-VAE)"
    axes[1].set(xlabel="PSNR of the whole volume (dB)", ylabel="Dice", title=title)
    for axis in axes:
        axis.legend(fontsize=8)
    return figure


def volumes_figure(differences: Mapping[str, Mapping[str, pd.DataFrame]], volumes: Sequence[int], title: str) -> Figure:
    """Draw Fig. 4b: PSNR minus continued training against the number of target volumes.

    Args:
        differences: by truth, then by the way of counting steps: dB, a row a number of volumes, a column a seed.
        volumes: the numbers.
        title: text above the figure.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, (truth, ways) in zip(axes, differences.items(), strict=True):
        for way, values in ways.items():
            (line,) = axis.plot(volumes, values.mean(axis=1), marker="o", label=way)
            axis.plot(volumes, values, ".", color=line.get_color(), alpha=0.5)
        axis.axhline(0, color="gray", lw=0.8)
        label = f"PSNR to {truth} minus\ncontinued training (dB)"
        axis.set(xticks=volumes, xlabel="target volumes n (control: % of the steps)", ylabel=label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def curve_figure(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    histograms: Mapping[str, ArrayLike],
    sites: tuple[str, str],
    kind: str,
) -> Figure:
    """Draw the curves from one T1 look to another, and the histograms before and after.

    Args:
        curves: T1 signals at the source and at the target, white matter = 1, by name.
        histograms: normalised intensities in the brain by name.
        sites: names of source and target.
        kind: what the titles call the data, such as "simulated".
    """
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for name, (x, y) in curves.items():
        axes[0].plot(x, y, marker="o", label=name)
    axes[0].plot([0, 1.2], [0, 1.2], color="gray", lw=0.8)
    across, up = (f"T1 signal at {site}{gap}(white matter = 1)" for site, gap in zip(sites, (" ", "\n"), strict=True))
    axes[0].set(xlim=(0, 1.2), ylim=(0, 1.2), xlabel=across, ylabel=up, title=f"The curve ({kind})")
    axes[0].legend()
    for name, values in histograms.items():
        axes[1].hist(np.asarray(values), bins=80, range=(0, 1), density=True, histtype="step", label=name)
    title = f"Histograms ({kind}, subjects differ)"
    axes[1].set(xlabel="normalised intensity", ylabel="probability density", title=title)
    axes[1].legend(fontsize=8)
    return figure


def doubt_panels(t1: ArrayLike, spread: ArrayLike, doubt: ArrayLike, title: str) -> Figure:
    """Draw the slice of a synthetic T1 with most doubt, its spread, and what is doubtful.

    Args:
        t1: (x, y, z) in [0, 1].
        spread: standard deviation of the ensemble, (x, y, z), in units of T1.
        doubt: (x, y, z), 1 where T1 is not to be trusted.
        title: text above the figure.
    """
    z = int(np.asarray(doubt).sum((0, 1)).argmax())
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
    panels = {
        "synthetic T1": (t1, 1, "normalised intensity", None),
        "spread": (spread, 0.1, "normalised intensity", None),
        "do not trust": (doubt, 1, "1: do not trust", [0, 1]),
    }
    for axis, (name, (volume, high, label, ticks)) in zip(axes, panels.items(), strict=True):
        style = dict(origin="lower", cmap="gray", vmin=0, vmax=high, interpolation="nearest")
        picture = axis.imshow(slice_of(volume, index=z), **style)
        figure.colorbar(picture, ax=axis, label=label, ticks=ticks)
        axis.set(title=name, xticks=[], yticks=[])
    figure.suptitle(title, fontsize=11)
    return figure
