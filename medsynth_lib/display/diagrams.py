"""The adaptation paper's schematic figures, redrawn."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

SOURCE, TARGET, SHARED, MODEL = "#a5d6a7", "#90caf9", "#ffe082", "#e0e0e0"


def box(axis, x, y, text, colour, width=1.5, height=0.62):
    axis.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0.04",
            facecolor=colour,
            edgecolor="#555555",
        )
    )
    axis.text(x, y, text, ha="center", va="center", fontsize=8.5, color="black")


def arrow(axis, start, end, text="", style="-|>", dashed=False, offset=0.16):
    axis.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle=style,
            mutation_scale=11,
            color="#555555",
            linestyle="--" if dashed else "-",
            shrinkA=0,
            shrinkB=0,
        )
    )
    axis.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + offset, text, ha="center", fontsize=8)


def domain_adaptation_tasks():
    """The paper's Fig. 1: classification and segmentation share their output space across domains, synthesis does not."""
    tasks = {
        "classification": ("label y", "label y"),
        "segmentation": ("mask y", "mask y"),
        "synthesis": ("image $y_s$", "image $y_t$ = ?"),
    }
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.1), layout="constrained")
    for axis, (task, outputs) in zip(axes, tasks.items(), strict=True):
        shared = task != "synthesis"
        for y, domain, colour, output in ((1.6, "source", SOURCE, outputs[0]), (0.4, "target", TARGET, outputs[1])):
            box(axis, 0.8, y, f"{domain} input\n$x_{domain[0]}$", colour)
            box(axis, 2.9, y, "model", MODEL, 1.0)
            box(axis, 5.0, y, output, SHARED if shared else colour)
            arrow(axis, (1.6, y), (2.36, y))
            arrow(axis, (3.44, y), (4.2, y))
        arrow(axis, (0.8, 1.24), (0.8, 0.76), "", "<|-|>", dashed=True)
        axis.text(0.95, 1.0, "align", fontsize=8, va="center")
        arrow(axis, (5.0, 1.24), (5.0, 0.76), "", "<|-|>", dashed=not shared)
        axis.text(
            5.12,
            1.0,
            "same space" if shared else "another scanner's look",
            fontsize=8,
            va="center",
            ha="left" if shared else "center",
            bbox=dict(facecolor="white", edgecolor="none", pad=1),
        )
        axis.set(xlim=(-0.1, 6.4), ylim=(-0.1, 2.1), title=task)
        axis.axis("off")
    return figure


def adaptation_framework():
    """The paper's Fig. 2: supervised backbone in the source, s-VAE prior on source T1, KL on the target's output."""
    figure, axis = plt.subplots(figsize=(11, 3.9), layout="constrained")
    box(axis, 1.2, 3.0, "FLAIR, T2\nsource $x_s$", SOURCE)
    box(axis, 4.0, 3.0, "3D pix2pix Φ\n(this lesson)", MODEL, 1.9)
    box(axis, 6.9, 3.0, "synthetic T1\n$\\hat y_s$", SOURCE)
    box(axis, 9.4, 3.0, "real T1\n$y_s$", SOURCE)
    box(axis, 1.2, 0.8, "FLAIR, T2\ntarget $x_t$", TARGET)
    box(axis, 4.0, 0.8, "the same Φ,\nadapted", MODEL, 1.9)
    box(axis, 6.9, 0.8, "synthetic T1\n$\\hat y_t$", TARGET)
    box(axis, 9.4, 1.9, "2D s-VAE\nencoder", SHARED)
    for y in (3.0, 0.8):
        arrow(axis, (2.0, y), (3.0, y))
        arrow(axis, (5.0, y), (6.1, y))
    arrow(axis, (7.7, 3.0), (8.6, 3.0), "$L_{syn}$ (L1)", "<|-|>")
    arrow(axis, (4.0, 2.65), (4.0, 1.15), "", "-|>", dashed=True)
    axis.text(4.12, 1.9, "same weights", fontsize=8, va="center")
    arrow(axis, (9.4, 2.65), (9.4, 2.25))
    arrow(axis, (7.7, 0.9), (8.75, 1.58))
    axis.text(10.35, 1.9, "$L_{ada}=D_{KL}(P(Y_s)\\,||\\,P(\\hat Y_t))$\n(lessons 03 and 04)", fontsize=8, va="center")
    axis.set(xlim=(0.2, 12.6), ylim=(0.3, 3.5))
    axis.axis("off")
    return figure
