"""`show`: a volume in three planes with orientation letters, millimetres, window and overlay."""

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from matplotlib.colors import ListedColormap

from medsynth_lib.display.headless import headless

PLANES = {"sagittal": (0, 1, 2), "coronal": (1, 0, 2), "axial": (2, 0, 1)}  # fixed axis, horizontal axis, vertical axis
LETTERS = "LR", "PA", "IS"  # low and high end of x, y and z in RAS
BRATS_COLOURS = ListedColormap(["#e6550d", "#31a354", "#000000", "#fdd835"])  # 1 necrotic, 2 oedema, 4 enhancing


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


def show(volume, affine=None, overlay=None, window=None, at=None, title=""):
    """Show a volume in three planes; with a live kernel, sliders for position and window follow below.

    Args:
        volume: (1, x, y, z) or (x, y, z); its ``affine`` attribute or the argument gives orientation and millimetres.
        overlay: label volume of the same shape, drawn in colour where it is not zero (BraTS labels).
        window: (low, high) shown as black and white; None takes 0 and the 99.7th percentile of the nonzero voxels.
        at: position in mm (x, y, z); None takes the middle of the overlay, else of the volume.

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
    figure = draw(array, affine_ras, voxel, window, labels, title)
    if not headless():
        plt.show()
        sliders(array, affine_ras, voxel, window, labels, title)
    return figure


def draw(array, affine, voxel, window, labels, title):
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
            axis.imshow(np.ma.masked_equal(plane_labels, 0), cmap=BRATS_COLOURS, vmin=1, vmax=4, alpha=0.55, **settings)
        mm = affine[fixed, 3] + affine[fixed, fixed] * voxel[fixed]
        axis.set(title=f"{plane}, {'xyz'[fixed]} = {mm:.0f} mm", xlabel="mm")
        letter(axis, 0.02, 0.5, LETTERS[horizontal][0])
        letter(axis, 0.98, 0.5, LETTERS[horizontal][1])
        letter(axis, 0.5, 0.02, LETTERS[vertical][0])
        letter(axis, 0.5, 0.98, LETTERS[vertical][1])
    figure.suptitle(f"{title}   window {window[0]:.4g} to {window[1]:.4g}".strip(), fontsize=11)
    return figure


def letter(axis, x, y, text):
    axis.text(x, y, text, transform=axis.transAxes, color="#ffd54f", weight="bold", ha="center", va="center")


def sliders(array, affine, voxel, window, labels, title):
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
            figure = draw(array, affine, [p.value for p in position], range_.value, labels, title)
            display(figure)
            plt.close(figure)

    for control in (*position, range_):
        control.observe(redraw, "value")
    display(widgets.VBox([widgets.HBox(position), range_, out]))
