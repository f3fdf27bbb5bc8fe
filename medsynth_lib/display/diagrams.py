"""Schematic figures of the two papers, redrawn."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

SOURCE, TARGET, SHARED, MODEL = "#a5d6a7", "#90caf9", "#ffe082", "#e0e0e0"


Point = tuple[float, float]


def box(axis: Axes, x: float, y: float, text: str, colour: str, width: float = 1.5, height: float = 0.62) -> None:
    """Draw a rounded box with a text, centred on (x, y), in the axis' own units."""
    corner = (x - width / 2, y - height / 2)
    style = dict(boxstyle="round,pad=0.04", facecolor=colour, edgecolor="#555555")
    axis.add_patch(FancyBboxPatch(corner, width, height, **style))
    axis.text(x, y, text, ha="center", va="center", fontsize=8.5, color="black")


def arrow(axis: Axes, start: Point, end: Point, text: str = "", style: str = "-|>", dashed: bool = False) -> None:
    """Draw an arrow between two points, in matplotlib's ``style``, and a text above its middle."""
    look = dict(arrowstyle=style, mutation_scale=11, color="#555555", linestyle="--" if dashed else "-")
    axis.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **look))
    axis.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.16, text, ha="center", fontsize=8)


def domain_adaptation_tasks() -> Figure:
    """Draw Fig. 1 of the adaptation paper: which tasks share their output space across domains."""
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
        look = dict(fontsize=8, va="center", bbox=dict(facecolor="white", edgecolor="none", pad=1))
        text, side = ("same space", "left") if shared else ("another scanner's look", "center")
        axis.text(5.12, 1.0, text, ha=side, **look)
        axis.set(xlim=(-0.1, 6.4), ylim=(-0.1, 2.1), title=task)
        axis.axis("off")
    return figure


def adaptation_framework() -> Figure:
    """Draw Fig. 2 of the adaptation paper: backbone, s-VAE and the KL on the target's output."""
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


HAGAN_ARROWS = (  # start, end, text
    ((1.5, 4.2), (2.15, 4.2), ""),
    ((3.05, 4.2), (3.65, 4.2), ""),
    ((5.35, 4.45), (6.15, 5.15), ""),
    ((5.35, 3.95), (5.7, 3.4), ""),
    ((7.5, 3.2), (8.05, 3.2), ""),
    ((7.05, 5.2), (9.55, 5.2), "eq. 2"),
    ((8.95, 3.2), (9.55, 3.2), "eq. 3"),
    ((11.45, 5.2), (12.15, 5.2), "eq. 5"),
    ((11.45, 3.2), (12.15, 3.2), "eq. 4"),
    ((11.45, 1.7), (12.5, 2.84), ""),
    ((11.45, 6.3), (12.5, 5.56), ""),
    ((9.2, 0.7), (10.1, 1.24), ""),
    ((7.4, 0.5), (6.95, 0.5), ""),
    ((5.25, 0.5), (4.75, 0.5), ""),
    ((3.85, 0.5), (3.2, 0.5), ""),
    ((1.8, 0.5), (1.35, 0.5), ""),
)


def hagan_boxes(size: int, depth: int, latent: int, c: int) -> list[tuple[float, float, str, str, float]]:
    """List the boxes of `hagan_training` for the same arguments: x, y, text, colour, width."""
    quarter = size // 4
    return [
        (0.9, 4.2, f"code z\n{latent}", SHARED, 1.1),
        (2.6, 4.2, "$G^A$", MODEL, 0.8),
        (4.5, 4.2, f"features A\n{2 * c} x {quarter}³", SHARED, 1.6),
        (6.6, 5.2, "$G^L$", MODEL, 0.8),
        (6.6, 3.2, f"$S^L(A; r)$: $A_r$\n{2 * c} x {depth // 4} x {quarter}²", SHARED, 1.7),
        (8.5, 3.2, "$G^H$", MODEL, 0.8),
        (10.5, 5.2, f"small whole $\\hat X^L$\n{quarter}³", TARGET, 1.8),
        (10.5, 3.2, f"sub-volume $\\hat X^H_r$\n{depth} x {size}²", TARGET, 1.8),
        (12.6, 5.2, "$D^L$", MODEL, 0.8),
        (12.6, 3.2, "$D^H$", MODEL, 0.8),
        (10.5, 1.6, f"$S^H(X^H; r)$\n{depth} x {size}²", SOURCE, 1.8),
        (10.5, 6.4, f"real $X^L$, {quarter}³", SOURCE, 1.8),
        (8.3, 0.5, f"real volume $X^H$\n{size}³", SOURCE, 1.7),
        (6.1, 0.5, f"{size // depth} sub-volumes\n$S^H(X^H; T_v)$", SOURCE, 1.6),
        (4.3, 0.5, "$E^H$", MODEL, 0.8),
        (2.5, 0.5, f"$\\hat A$\n{2 * c} x {quarter}³", SHARED, 1.3),
        (0.9, 0.5, "$E^G$", MODEL, 0.8),
    ]


def hagan_training(size: int = 256, depth: int = 32, latent: int = 1024, c: int = 32) -> Figure:
    """Draw HA-GAN's data flow in training (its Fig. 1).

    Shapes are channels x slices x rows x columns.

    Args:
        size: voxels of a volume along each axis.
        depth: slices of a sub-volume.
        latent: numbers of a code z.
        c: the networks' width; features A have 2 c channels.
    """
    figure, axis = plt.subplots(figsize=(13, 5.4), layout="constrained")
    for each in hagan_boxes(size, depth, latent, c):
        box(axis, *each)
    for start, end, text in HAGAN_ARROWS:
        arrow(axis, start, end, text)
    arrow(axis, (0.9, 0.86), (0.9, 3.84), "", dashed=True)
    arrow(axis, (4.3, 0.86), (8.2, 2.84), "", dashed=True)
    note = dict(fontsize=8, va="center")
    axis.text(1.0, 2.4, "$\\hat Z$: recovered through\nboth branches, eq. 7", **note)
    axis.text(5.2, 1.55, "one sub-volume from its\nown features, eq. 6", ha="right", **note)
    axis.text(13.1, 3.2, "+ r", **note)
    axis.set(xlim=(0.2, 13.6), ylim=(0, 6.85))
    axis.axis("off")
    return figure
