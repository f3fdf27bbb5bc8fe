"""Walks through a latent space: the HA-GAN paper's Figs. 7 and 8, and an explorer with a slider for each direction."""

import io
import time
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike

from medsynth_lib.display.figures import slice_of
from medsynth_lib.display.volume import LETTERS, PLANES, Window, letter
from medsynth_lib.processes import headless

REACH = 2.0  # of the sliders, in standard deviations: as far as the walks of lesson 07 are measured


def aspect(spacing: ArrayLike, plane: str) -> float:
    """Return the height of a voxel over its width in a plane, from its size (3) in mm."""
    _, horizontal, vertical = PLANES[plane]
    return float(spacing[vertical] / spacing[horizontal])


def walk_figure(
    rows: Sequence[tuple[str, str, list]],
    spacing: ArrayLike,
    window: Window,
    colour: str,
    title: str,
    columns: Sequence[str] = (),
    one_slice: bool = False,
) -> Figure:
    """Draw walks through the latent space, one a row, with masks outlined (Figs. 7 and 8).

    Args:
        rows: (name, plane, pictures) of each walk; a picture is (volume (S, S, S), mask (S, S, S), text below it).
            A row shows the slice in which its masks are largest together.
        spacing: voxel size (3) in mm.
        window: (low, high) shown as black and white.
        colour: of the outlines.
        title: text above the figure.
        columns: text above each column.
        one_slice: all rows show the first row's slice.
    """
    count, heights = len(rows[0][2]), [1.9 * aspect(spacing, plane) + 0.3 for _, plane, _ in rows]
    grid = dict(gridspec_kw=dict(height_ratios=heights), squeeze=False, layout="constrained")
    figure, axes = plt.subplots(len(rows), count, figsize=(1.9 * count, sum(heights) + 0.6), dpi=70, **grid)
    for n, (line, (name, plane, pictures)) in enumerate(zip(axes, rows, strict=True)):
        if n == 0 or not one_slice:
            index = largest_slice([np.asarray(mask) for _, mask, _ in pictures], PLANES[plane][0])
        for axis, (volume, mask, text) in zip(line, pictures, strict=True):
            settings = dict(origin="lower", interpolation="nearest", aspect=aspect(spacing, plane))
            axis.imshow(slice_of(volume, plane, index), cmap="gray", vmin=window[0], vmax=window[1], **settings)
            inside = slice_of(np.asarray(mask), plane, index)
            if inside.any() and not inside.all():
                axis.contour(inside, [0.5], colors=colour, linewidths=0.8)
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(text, fontsize=8)
        line[0].set_ylabel(f"{name}\n({plane}, slice {index})", fontsize=9)
    for axis, text in zip(axes[0], columns, strict=False):
        axis.set_title(text, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def largest_slice(masks: Sequence[np.ndarray], fixed: int) -> int:
    """Find the slice across an axis in which masks are largest together.

    Args:
        masks: boolean, each (S, S, S).
        fixed: the axis, 0 to 2.

    Returns:
        The slice number; the middle one where all masks are empty.
    """
    area = sum(np.moveaxis(mask, fixed, 0).reshape(mask.shape[fixed], -1).sum(1) for mask in masks)
    return int(area.argmax()) if area.any() else masks[0].shape[fixed] // 2


def heat_map(
    axis: Axes, matrix: ArrayLike, rows: Sequence[str], columns: Sequence[str], title: str, limit: float = 1.0
) -> AxesImage:
    """Draw a signed matrix as colours with its numbers; grey where it is nan.

    Args:
        axis: where to draw.
        matrix: (rows, columns).
        rows: names of the rows.
        columns: names of the columns.
        title: text above the axis.
        limit: the colours reach from -limit to limit.

    Returns:
        The picture, for a colour bar.
    """
    picture = axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.set_facecolor("#cccccc")
    for i, line in enumerate(np.asarray(matrix)):
        for j, value in enumerate(line):
            colour = "white" if abs(value) > 0.6 * limit else "black"
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_title(title, fontsize=10)
    return picture


class LatentView:
    """Draw the volume of a latent code in three planes; `move` generates it again elsewhere and redraws.

    Args:
        generate: codes (1, d) to volumes (1, 1, S, S, S).
        z: the code (d) where all sliders are 0.
        names: of the k directions.
        directions: (k, d); a step of 1 along one is 1 on its slider.
        spacing: voxel size (3) in mm.
        window: (low, high) shown as black and white.
        measure: volumes (1, 1, S, S, S) to factors (1, k), written below the sliders' values; None writes none.
    """

    def __init__(
        self,
        generate: Callable[[torch.Tensor], torch.Tensor],
        z: torch.Tensor,
        names: Sequence[str],
        directions: torch.Tensor,
        spacing: ArrayLike,
        window: Window = (-1, 1),
        measure: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.generate, self.z, self.names, self.directions = generate, z, names, directions
        self.measure = measure
        self.figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
        blank, self.images = np.zeros((8, 8)), {}
        for axis, (plane, (_, horizontal, _)) in zip(axes, PLANES.items(), strict=True):
            settings = dict(origin="lower", cmap="gray", vmin=window[0], vmax=window[1], interpolation="nearest")
            self.images[plane] = axis.imshow(blank, extent=(0, 1, 0, 1), aspect="auto", **settings)
            axis.set(xticks=[], yticks=[], title=plane)
            letter(axis, 0.05, 0.5, LETTERS[horizontal][0])
            letter(axis, 0.95, 0.5, LETTERS[horizontal][1])
        self.spacing = spacing
        self.move([0.0] * len(names))
        for plane, image in self.images.items():
            height, width = image.get_array().shape
            image.axes.set_box_aspect(height / width * aspect(spacing, plane))
        self.figure.get_layout_engine().execute(self.figure)
        self.figure.set_layout_engine("none")  # laid out once: a move redraws nothing but pixels

    def move(self, values: Sequence[float]) -> np.ndarray:
        """Generate the volume at the sliders' values (k), redraw, and return it (S, S, S)."""
        z = self.z + torch.as_tensor(values, dtype=self.z.dtype) @ self.directions
        volumes = self.generate(z[None])
        volume = volumes[0, 0].numpy()
        for plane, image in self.images.items():
            image.set_data(slice_of(volume, plane))
        text = "steps: " + self.listed(values)
        if self.measure:
            text += "\nmeasured: " + self.listed(self.measure(volumes)[0])
        self.figure.suptitle(text, fontsize=10)
        return volume

    def listed(self, values: Sequence[float]) -> str:
        """Return one signed number a direction as text."""
        return ", ".join(f"{n} {float(v):+.1f}" for n, v in zip(self.names, values, strict=True))

    def png(self) -> bytes:
        """Return the figure as it is now, as the bytes of a PNG."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=80)
        return buffer.getvalue()

    def seconds_a_move(self, moves: int = 8) -> float:
        """Measure the median seconds from a slider's move to the finished picture."""
        seconds = []
        for k in range(moves):
            began = time.perf_counter()
            self.move([(k % 3) - 1.0] * len(self.names))
            self.png()
            seconds.append(time.perf_counter() - began)
        self.move([0.0] * len(self.names))
        return float(np.median(seconds))


def explore_latent(view: LatentView, title: str, doses: Sequence[float] = (-2.0, 0.0, 2.0)) -> Figure:
    """Show what each direction of a view does; with a live kernel, sliders follow.

    Args:
        view: a code and its directions.
        title: text above the figure.
        doses: steps along a direction, in standard deviations.

    Returns:
        The static figure: one direction a row, the doses in coronal and axial planes.
    """
    k, n = len(view.names), len(doses)
    height = 1.7 * max(aspect(view.spacing, plane) for plane in ("coronal", "axial")) + 0.1
    size = (1.7 * 2 * n, height * k + 0.7)
    figure, axes = plt.subplots(k, 2 * n, figsize=size, dpi=60, squeeze=False, layout="constrained")
    for i, name in enumerate(view.names):
        for j, dose in enumerate(doses):
            volume = view.move([dose if i == m else 0.0 for m in range(k)])
            for axis, plane in ((axes[i, j], "coronal"), (axes[i, n + j], "axial")):
                norm = view.images[plane].norm
                settings = dict(origin="lower", cmap="gray", vmin=norm.vmin, vmax=norm.vmax)
                axis.imshow(slice_of(volume, plane), aspect=aspect(view.spacing, plane), **settings)
                axis.set(
                    xticks=[], yticks=[], title="" if i else f"{plane}, {dose:+g} SD" if dose else f"{plane}, start"
                )
                axis.title.set_fontsize(9)
        axes[i, 0].set_ylabel(name, fontsize=9)
    view.move([0.0] * k)
    figure.suptitle(title, fontsize=11)
    if not headless():
        plt.show()
        latent_sliders(view)
    return figure


def latent_sliders(view: LatentView) -> None:
    """Display a slider for each direction, a button for another code, and the picture."""
    import ipywidgets as widgets
    from IPython.display import display

    options = dict(min=-REACH, max=REACH, step=0.25, style=dict(description_width="120px"))
    controls = [widgets.FloatSlider(value=0.0, description=name, **options) for name in view.names]
    another, picture = widgets.Button(description="another code"), widgets.Image(value=view.png(), format="png")

    def redraw(_):
        view.move([control.value for control in controls])
        picture.value = view.png()

    def draw_another(_):
        view.z = torch.randn_like(view.z)
        redraw(None)

    for control in controls:
        control.observe(redraw, "value")
    another.on_click(draw_another)
    display(widgets.VBox([*controls, another, picture]))
