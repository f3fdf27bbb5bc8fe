"""Figures of lesson 08: memory of a training step over time, by layer, by size and by lever; roofline; cost by size.

Tables of memory are in MiB, with one column a part ("parameters", "gradients", ...) and "peak", their sum.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

PARTS = ("parameters", "gradients", "optimiser state", "activations", "temporaries", "buffers", "inputs")
COLOURS = dict(zip(PARTS, plt.get_cmap("tab10").colors, strict=False))


def memory_timeline(timeline: pd.DataFrame, title: str = "") -> Figure:
    """Draw what is alive during a step, by parts, with its updates named.

    Args:
        timeline: MiB by parts, a row an allocation or release, and "phase", the name of the update or "".
        title: of the figure.
    """
    figure, axis = plt.subplots(figsize=(8.5, 3.6), layout="constrained")
    stacked = (timeline[part] for part in PARTS)
    axis.stackplot(timeline.index, *stacked, labels=PARTS, colors=COLOURS.values())
    updates = timeline[timeline["phase"] != ""]
    for name, events in updates.groupby("phase", sort=False):
        axis.axvline(events.index[0], color="black", lw=0.5)
        place = dict(ha="center", fontsize=9, transform=axis.get_xaxis_transform())
        axis.text(events.index.to_numpy().mean(), 1.01, name, **place)
    axis.set_title(title, pad=18)
    axis.set(xlabel="allocations and releases, in order", ylabel="MiB", xlim=(updates.index[0], len(timeline)))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return figure


def layer_bars(layers: pd.DataFrame, title: str = "", count: int = 8) -> Figure:
    """Draw the layers that hold most at the peak, by parts.

    Args:
        layers: MiB by parts and "peak", a row a layer.
        title: of the figure.
        count: of layers.
    """
    top = layers.nlargest(count, "peak")[::-1]
    axis = top[list(PARTS)].plot.barh(stacked=True, figsize=(8.5, 3.2), color=COLOURS, legend=False)
    axis.set(xlabel="MiB at the peak", ylabel="", xlim=(0, 1.05 * top["peak"].max()), title=title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return axis.figure


def card_memory(table: pd.DataFrame, measured: Mapping[int, float], title: str = "", card: float = 16.0) -> Figure:
    """Draw what training steps need on a card, against the size of a volume (Fig. 9).

    Args:
        table: estimated GiB, a row a size, a column a network.
        measured: the paper's GiB of HA-GAN, by size.
        title: of the figure.
        card: GB of the paper's card.
    """
    figure, axis = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for model in table:
        axis.plot(table.index, table[model], marker="o", ls="-" if "HA-GAN" in model else "--", label=model)
    axis.plot(list(measured), list(measured.values()), "k*", ms=10, label="HA-GAN, the paper's")
    axis.axhline(card, color="black", ls=":")
    axis.text(min(table.index), card, f"the paper's card, {card:g} GB", va="bottom")
    labels = dict(xlabel="size S of a volume S³", ylabel="GiB on a card (lines estimated, stars measured)", title=title)
    axis.set(xscale="log", yscale="log", xticks=table.index, **labels)
    axis.set_xticklabels(table.index)
    axis.minorticks_off()
    axis.set_ylim(top=2 * max(card, table.max().max()))
    axis.legend(fontsize=8)
    return figure


def lever_bars(peaks: pd.Series, title: str = "") -> Figure:
    """Draw what each lever does to the peak, one after the other.

    Args:
        peaks: MiB by lever, in order; the first one is where the levers start.
        title: of the figure.
    """
    figure, axis = plt.subplots(figsize=(8.5, 3.8), layout="constrained")
    for k, now in enumerate(peaks):
        before = peaks.iloc[k - 1] if k else 0
        colour = "tab:gray" if not k else "tab:green" if now <= before else "tab:red"
        axis.bar(k, now, color="lightgray")
        axis.bar(k, before - now if k else now, bottom=now if k else 0, color=colour)
        change = f"\n{now / before - 1:+.0%}" if k else ""
        axis.text(k, max(before, now), f"{now:.0f}{change}", ha="center", va="bottom", fontsize=8)
    axis.set(xticks=range(len(peaks)), ylabel="peak (MiB)", ylim=(0, 1.18 * peaks.max()), title=title)
    names = [name.replace(" ", "\n").replace("one\n", "one ").replace("at\n", "at ") for name in peaks.index]
    axis.set_xticklabels(names, fontsize=8)
    return figure


def roofline_plot(
    devices: Mapping[str, tuple[float, float]], intensities: Mapping[str, pd.Series], title: str = ""
) -> Figure:
    """Draw what devices can reach against the intensity of the work (Williams et al. 2009).

    Args:
        devices: name -> (FLOP/s, bytes/s) at most.
        intensities: form -> FLOP a byte, by phase; at most two forms, the first of which is named in the figure.
        title: of the figure.
    """
    figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
    x = np.logspace(-1, 3, 100)
    for name, (flops, bandwidth) in devices.items():
        line = axis.plot(x, np.minimum(flops, bandwidth * x), label=name)[0]
        for points, marker in zip(intensities.values(), "ox", strict=False):
            axis.plot(points, np.minimum(flops, bandwidth * points), marker, color=line.get_color())
    form, first = next(iter(intensities.items()))
    for k, (phase, at) in enumerate(first.sort_values().items()):
        axis.axvline(at, color="lightgray", lw=0.8, zorder=0)
        place = dict(fontsize=8, transform=axis.get_xaxis_transform(), ha="right")
        axis.text(at, 0.02 + 0.06 * k, f"{phase}, {form}", **place)
    axis.set(xscale="log", yscale="log", xlabel="intensity (FLOP / byte moved)", ylabel="attainable FLOP/s")
    axis.set(ylim=(None, 1e17), title=title)
    axis.legend(fontsize=8, loc="upper left")
    return figure


def cost_curves(
    table: pd.DataFrame, slopes: Mapping[str, Mapping[str, float]], sizes: Sequence[int], title: str = ""
) -> Figure:
    """Draw the cost of one volume against its size, a panel a quantity.

    Args:
        table: a row a "use" and size "S", with the columns that ``slopes`` names.
        slopes: quantity -> use -> p of cost ~ V^p.
        sizes: ticks of the axis.
        title: of the figure.
    """
    figure, axes = plt.subplots(1, len(slopes), figsize=(8.5, 3.4), layout="constrained")
    for axis, (quantity, powers) in zip(axes, slopes.items(), strict=True):
        for use, part in table.groupby("use", sort=False):
            axis.plot(part["S"], part[quantity], "o-", label=f"{use}: V^{powers[use]:.2f}")
        axis.set(xscale="log", yscale="log", xlabel="size S", ylabel=quantity, xticks=sizes)
        axis.set_xticklabels(sizes)
        axis.minorticks_off()
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure
