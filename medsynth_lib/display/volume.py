"""`show`: a volume in three planes with orientation letters, millimetres, window and overlay."""

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from medsynth_lib.processes import headless

PLANES = {"sagittal": (0, 1, 2), "coronal": (1, 0, 2), "axial": (2, 0, 1)}  # fixed axis, horizontal axis, vertical axis
LETTERS = "LR", "PA", "IS"  # low and high end of x, y and z in RAS
LABEL_COLOURS = ListedColormap(["#ff7f0e", "#31a354", "#3b8eea", "#fdd835"])  # of labels 1 to 4
LABEL_OPACITY = 0.7
BRATS_NAMES = {1: "1 necrotic core", 2: "2 oedema", 4: "4 enhancing tumour"}

Window = tuple[float, float]  # intensities that are drawn black and white


def canonical(volume: ArrayLike, affine: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Bring a volume to RAS order.

    Args:
        volume: array, tensor or MetaTensor, (1, x, y, z) or (x, y, z).
        affine: (4, 4), voxel to mm. None takes the volume's own; without any, voxels of 1 mm centred on the origin.

    Returns:
        The array (x, y, z) in RAS order, float32, and its affine (4, 4).
    """
    if affine is None and hasattr(volume, "affine"):
        affine = np.asarray(volume.affine)
    array = np.asarray(volume)
    array = array.reshape(array.shape[-3:])
    if affine is None:
        affine = np.eye(4)
        affine[:3, 3] = -(np.array(array.shape) - 1) / 2
    image = nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.float32), affine))
    return image.get_fdata(dtype=np.float32), image.affine


def show(
    volume: ArrayLike,
    affine: ArrayLike | None = None,
    overlay: ArrayLike | None = None,
    window: Window | None = None,
    at: tuple[float, float, float] | None = None,
    title: str = "",
    names: dict[int, str] = BRATS_NAMES,
) -> Figure:
    """Show a volume in three planes; with a live kernel, sliders for position and window follow.

    The subject's left is drawn on the left (the neurological convention).

    Args:
        volume: (1, x, y, z) or (x, y, z).
        affine: (4, 4), voxel to mm; None takes the volume's own.
        overlay: label volume of the same shape; labels 1 to 4 are drawn in colour, with a legend.
        window: (low, high) shown as black and white; None takes 0 and the 99.7th percentile of the nonzero voxels.
        at: position (x, y, z) in mm; None takes the middle of the overlay, else of the volume.
        title: text above the figure.
        names: what the legend calls each label.

    Returns:
        The static figure, which is also what a saved or headless notebook keeps.
    """
    array, affine_ras = canonical(volume, affine)
    if affine is None and hasattr(volume, "affine"):
        affine = np.asarray(volume.affine)
    labels = canonical(overlay, affine)[0] if overlay is not None else None
    window = window or full_window(array)
    voxel = middle_voxel(array, labels) if at is None else np.linalg.solve(affine_ras, [*at, 1])[:3]
    voxel = np.clip(np.rint(voxel), 0, np.array(array.shape) - 1).astype(int)
    figure = draw(array, affine_ras, voxel, window, labels, title, names)
    if not headless():
        plt.show()
        sliders(array, affine_ras, voxel, window, labels, title, names)
    return figure


def full_window(array: np.ndarray) -> Window:
    """Return the window from 0 or a lower minimum to the 99.7th percentile of what is not 0."""
    high = float(np.percentile(array[array != 0], 99.7)) if array.any() else 1.0
    return min(0.0, float(array.min())), high


def middle_voxel(array: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Return the median position (3) of labelled voxels; the array's middle without any."""
    if labels is not None and labels.any():
        return np.median(np.argwhere(labels > 0), 0)
    return (np.array(array.shape) - 1) / 2


def draw(
    array: np.ndarray,
    affine: np.ndarray,
    voxel: ArrayLike,
    window: Window,
    labels: np.ndarray | None,
    title: str,
    names: dict[int, str] = BRATS_NAMES,
) -> Figure:
    """Draw the static three-plane figure of a RAS volume at one voxel.

    Args:
        array: (x, y, z) in RAS order.
        affine: (4, 4), voxel to mm.
        voxel: index (3) that all three planes go through.
        window: (low, high) shown as black and white.
        labels: (x, y, z) of labels 1 to 4, 0 elsewhere; None draws none.
        title: text above the figure; the window follows it.
        names: what the legend calls each label.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
    for axis, (plane, (fixed, horizontal, vertical)) in zip(axes, PLANES.items(), strict=True):
        extent = (*edges(array, affine, horizontal), *edges(array, affine, vertical))
        settings = dict(origin="lower", extent=extent, interpolation="nearest")
        axis.imshow(array.take(voxel[fixed], fixed).T, cmap="gray", vmin=window[0], vmax=window[1], **settings)
        if labels is not None:
            plane_labels = labels.take(voxel[fixed], fixed).T
            colours = dict(cmap=LABEL_COLOURS, vmin=1, vmax=4, alpha=LABEL_OPACITY)
            axis.imshow(np.ma.masked_equal(plane_labels, 0), **colours, **settings)
        mm = affine[fixed, 3] + affine[fixed, fixed] * voxel[fixed]
        axis.set(title=f"{plane}, {'xyz'[fixed]} = {mm:.0f} mm", xlabel="mm")
        letter(axis, 0.05, 0.5, LETTERS[horizontal][0])
        letter(axis, 0.95, 0.5, LETTERS[horizontal][1])
        letter(axis, 0.5, 0.05, LETTERS[vertical][0])
        letter(axis, 0.5, 0.95, LETTERS[vertical][1])
    if labels is not None and labels.any():
        legend(figure, labels, names)
    figure.suptitle(f"{title}   window {window[0]:.4g} to {window[1]:.4g}".strip(), fontsize=11)
    return figure


def edges(array: np.ndarray, affine: np.ndarray, axis: int) -> tuple[float, float]:
    """Return where the array begins and ends along an axis, in mm, outer halves included."""
    low, high = (affine[axis, 3] + affine[axis, axis] * e for e in (-0.5, array.shape[axis] - 0.5))
    return low, high


def letter(axis: Axes, x: float, y: float, text: str) -> None:
    """Write an orientation letter at (x, y), from 0 to 1, legible on bright and dark tissue."""
    edge = [withStroke(linewidth=2, foreground="black")]
    at = dict(transform=axis.transAxes, ha="center", va="center")
    axis.text(x, y, text, color="#ffd54f", weight="bold", path_effects=edge, **at)


def legend(figure: Figure, labels: np.ndarray, names: dict[int, str]) -> None:
    """Add a patch for each label that occurs, in its colour over the middle grey."""
    patches = []
    for value in np.unique(labels[labels > 0]).astype(int):
        over_grey = LABEL_OPACITY * np.array(LABEL_COLOURS((value - 1) / 3)[:3]) + (1 - LABEL_OPACITY) * 0.5
        patches.append(Patch(facecolor=over_grey, edgecolor="black", linewidth=0.5, label=names.get(value, str(value))))
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)


def sliders(
    array: np.ndarray,
    affine: np.ndarray,
    voxel: ArrayLike,
    window: Window,
    labels: np.ndarray | None,
    title: str,
    names: dict[int, str],
) -> None:
    """Display sliders for positions and window; they call `draw`, which has the same arguments."""
    import ipywidgets as widgets
    from IPython.display import display

    out = widgets.Output()
    position = [
        widgets.IntSlider(int(v), 0, n - 1, description=f"{c} (voxel)", continuous_update=False)
        for v, n, c in zip(voxel, array.shape, "xyz", strict=True)
    ]
    low, high = float(array.min()), float(array.max())
    range_ = widgets.FloatRangeSlider(
        value=window, min=low, max=high, step=(high - low) / 200 or 1, description="window", continuous_update=False
    )

    def redraw(_):
        out.clear_output(wait=True)
        with out:
            figure = draw(array, affine, [p.value for p in position], range_.value, labels, title, names)
            display(figure)
            plt.close(figure)

    for control in (*position, range_):
        control.observe(redraw, "value")
    display(widgets.VBox([widgets.HBox(position), range_, out]))
