"""`show`: a volume in three planes with orientation letters, millimetres, window and overlay."""

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from medsynth_lib.processes import headless

PLANES = {"sagittal": (0, 1, 2), "coronal": (1, 0, 2), "axial": (2, 0, 1)}  # fixed axis, horizontal axis, vertical axis
LETTERS = "LR", "PA", "IS"  # low and high end of x, y and z in RAS
LABEL_COLOURS = ListedColormap(["#ff7f0e", "#31a354", "#3b8eea", "#fdd835"])  # of labels 1 to 4
LABEL_OPACITY = 0.7
BRATS_NAMES = {1: "1 necrotic core", 2: "2 oedema", 4: "4 enhancing tumour"}


def canonical(volume, affine=None):
    """(x, y, z) array in RAS order and its affine, from an array, tensor or MetaTensor of shape (1, x, y, z) or (x, y, z).

    Without any affine, voxels of 1 mm centred on the origin are assumed.
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


def show(volume, affine=None, overlay=None, window=None, at=None, title="", names=BRATS_NAMES):
    """Show a volume in three planes; with a live kernel, sliders for position and window follow below.

    The person's left is drawn on the left (the neurological convention).

    Args:
        volume: (1, x, y, z) or (x, y, z); its ``affine`` attribute or the argument gives orientation and millimetres.
        overlay: label volume of the same shape, labels 1 to 4 are drawn in colour, with a legend.
        window: (low, high) shown as black and white; None takes 0 and the 99.7th percentile of the nonzero voxels.
        at: position in mm (x, y, z); None takes the middle of the overlay, else of the volume.
        names: what the legend calls each label.

    Returns the static matplotlib figure, which is also what a saved or headless notebook keeps.
    """
    array, affine_ras = canonical(volume, affine)
    if affine is None and hasattr(volume, "affine"):
        affine = np.asarray(volume.affine)
    labels = canonical(overlay, affine)[0] if overlay is not None else None
    if window is None:
        window = (min(0.0, float(array.min())), float(np.percentile(array[array != 0], 99.7)) if array.any() else 1.0)
    if at is None:
        inside = np.argwhere(labels > 0) if labels is not None and labels.any() else None
        voxel = np.median(inside, 0) if inside is not None else (np.array(array.shape) - 1) / 2
    else:
        voxel = np.linalg.solve(affine_ras, [*at, 1])[:3]
    voxel = np.clip(np.rint(voxel), 0, np.array(array.shape) - 1).astype(int)
    figure = draw(array, affine_ras, voxel, window, labels, title, names)
    if not headless():
        plt.show()
        sliders(array, affine_ras, voxel, window, labels, title, names)
    return figure


def draw(array, affine, voxel, window, labels, title, names=BRATS_NAMES):
    """The static three-plane figure of a RAS volume at one voxel position."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
    for axis, (plane, (fixed, horizontal, vertical)) in zip(axes, PLANES.items(), strict=True):
        extent = [
            affine[horizontal, 3] + affine[horizontal, horizontal] * e for e in (-0.5, array.shape[horizontal] - 0.5)
        ]
        extent += [affine[vertical, 3] + affine[vertical, vertical] * e for e in (-0.5, array.shape[vertical] - 0.5)]
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


def letter(axis, x, y, text):
    edge = [withStroke(linewidth=2, foreground="black")]  # legible on bright tissue, too
    at = dict(transform=axis.transAxes, ha="center", va="center")
    axis.text(x, y, text, color="#ffd54f", weight="bold", path_effects=edge, **at)


def legend(figure, labels, names):
    """One patch for each label that occurs, in its colour as it is laid over the middle grey of the window."""
    patches = []
    for value in np.unique(labels[labels > 0]).astype(int):
        over_grey = LABEL_OPACITY * np.array(LABEL_COLOURS((value - 1) / 3)[:3]) + (1 - LABEL_OPACITY) * 0.5
        patches.append(Patch(facecolor=over_grey, edgecolor="black", linewidth=0.5, label=names.get(value, str(value))))
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)


def sliders(array, affine, voxel, window, labels, title, names):
    """Sliders for the three positions and the window, redrawing the figure below the static one."""
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
