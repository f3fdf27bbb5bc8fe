"""Where the crop of a prepared volume lies: in the middle of the field of view, unless the brain is elsewhere.

The paper crops the middle 144 of BraTS's 155 slices (section 3). A field of view like that is cropped in the middle here, too.
In a larger one the brain may lie low, high or aside, above neck and shoulders for instance: then the crop follows it.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, ResizeWithPadOrCrop, SpatialCrop

from medsynth_lib.data.files.nifti import volume_name
from medsynth_lib.files import DataError, say_once

MOST = 0.02  # of a brain may be cut off; MNI152 is 155 mm high, the paper's crop 144 mm: it loses 0.1 %
MARGIN_MM = 15.0  # how much longer than the crop a field of view may be, to count as like BraTS's


class BrainCropd(MapTransform, InvertibleTransform):
    """Crop or pad images of one grid to one size, about the brain of one of them.

    Args:
        keys: of the images.
        anchor: key of the image whose voxels other than 0 are the brain.
        size: voxels (x, y, z) of the result.

    Raises:
        DataError: where the brain does not fit, and where labels ("seg") would be cut off.
    """

    def __init__(self, keys: Iterable[str], anchor: str, size: Sequence[int]) -> None:
        super().__init__(keys)
        self.anchor, self.size = anchor, tuple(size)
        self.crop = ResizeWithPadOrCrop(self.size)

    def __call__(self, data: Mapping[str, MetaTensor]) -> dict[str, MetaTensor]:
        """Crop all images alike."""
        window = fitting_window(data[self.anchor], self.size)
        self.crop.cropper = SpatialCrop(roi_slices=window)
        if "seg" in self.keys and self.anchor != "seg":
            require_labels_inside(data["seg"], window)
        return dict(data) | {key: self.crop(data[key]) for key in self.keys}

    def inverse(self, data: Mapping[str, MetaTensor]) -> dict[str, MetaTensor]:
        """Put all images back where the last call took them from, with 0 around them."""
        return dict(data) | {key: self.crop.inverse(data[key]) for key in self.keys}


def fitting_window(volume: MetaTensor, size: Sequence[int]) -> tuple[slice, ...]:
    """Return the `brain_window` of an image; say what it cuts off, or refuse the image.

    Args:
        volume: (1, x, y, z), 0 outside the brain.
        size: voxels (x, y, z) of the crop.

    Raises:
        DataError: where more than `MOST` of the brain would be cut off.
    """
    brain, spacing = volume.as_tensor()[0] != 0, voxel_size(volume)
    window = brain_window(brain, size, spacing)
    lost = share_outside(brain, window)
    if lost > MOST:
        raise DataError(
            f"{volume_name(volume)}: {cut_in_words(brain, window, spacing)}; use a contract of a larger size, or set what is "
            "not brain (neck, eyes, a frame) to 0."
        )
    if lost and window != middle_window(brain.shape, size):
        name = volume_name(volume)
        say_once(f"crop of {name}", f"{name}: {cut_in_words(brain, window, spacing)}.")
    return window


def brain_window(brain: torch.Tensor, size: Sequence[int], spacing: Sequence[float]) -> tuple[slice, ...]:
    """Find where to crop: in the middle, else as near to it as the most of the brain allows.

    The middle also stays where that cuts off at most `MOST` of the brain, along axes that are at most `MARGIN_MM` longer than
    the crop.

    Args:
        brain: (x, y, z), boolean.
        size: voxels (x, y, z) of the crop; an axis that is shorter is kept whole.
        spacing: voxel size (x, y, z) in mm.

    Returns:
        Three slices.
    """
    window = middle_window(brain.shape, size)
    longer = [(n - (part.stop - part.start)) * mm for n, part, mm in zip(brain.shape, window, spacing, strict=True)]
    fixed = [excess <= MARGIN_MM for excess in longer]
    moved = [
        part if stays else best_part(brain, k, part) for k, (part, stays) in enumerate(zip(window, fixed, strict=True))
    ]
    if share_outside(brain, tuple(moved)) > MOST:
        moved = [best_part(brain, axis, part) for axis, part in enumerate(window)]
    return tuple(moved)


def middle_window(shape: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    """Return the middle of a field of view, where MONAI's central crop has it."""
    kept = [min(n, wanted) for n, wanted in zip(shape, size, strict=True)]
    starts = [n // 2 - k // 2 for n, k in zip(shape, kept, strict=True)]
    return tuple(slice(start, start + k) for start, k in zip(starts, kept, strict=True))


def best_part(brain: torch.Tensor, axis: int, middle: slice) -> slice:
    """Find the slices along an axis that hold the most of a brain.

    Args:
        brain: (x, y, z), boolean.
        axis: 0, 1 or 2.
        middle: so many slices, and as near to these as can be.
    """
    total, size = np.concatenate([[0], profile(brain, axis).cumsum()]), middle.stop - middle.start
    held = total[size:] - total[: len(total) - size]
    best = np.flatnonzero(held == held.max())
    start = int(best[np.abs(best - middle.start).argmin()])
    return slice(start, start + size)


def profile(brain: torch.Tensor, axis: int) -> np.ndarray:
    """Count the voxels of a brain (x, y, z) in each slice along an axis."""
    return brain.movedim(axis, 0).flatten(1).sum(1).numpy()


def share_outside(brain: torch.Tensor, window: tuple[slice, ...]) -> float:
    """Return the share, 0 to 1, of a brain's voxels (x, y, z) outside a window; 0 for no brain."""
    count = int(brain.sum())
    return 1 - int(brain[window].sum()) / count if count else 0.0


def voxel_size(volume: MetaTensor) -> np.ndarray:
    """Return the voxel size (3) of a volume in mm."""
    return np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0)


def cut_in_words(brain: torch.Tensor, window: tuple[slice, ...], spacing: Sequence[float]) -> str:
    """Say how much of a brain (x, y, z) lies outside a window, in % and along each axis in mm."""
    parts = []
    for axis, kept in enumerate(window):
        used = np.flatnonzero(profile(brain, axis))
        cut = max(0, kept.start - used[0]) + max(0, used[-1] + 1 - kept.stop)
        if cut:
            long = used[-1] + 1 - used[0]
            parts.append(f"{cut * spacing[axis]:.0f} of its {long * spacing[axis]:.0f} mm along {'xyz'[axis]}")
    size = " x ".join(f"{(kept.stop - kept.start) * mm:.0f}" for kept, mm in zip(window, spacing, strict=True))
    return (
        f"the crop of {size} mm cuts off {100 * share_outside(brain, window):.2g} % of the brain, {' and '.join(parts)}"
    )


def require_labels_inside(labels: MetaTensor, window: tuple[slice, ...]) -> None:
    """Raise DataError where more than `MOST` of the labels (1, x, y, z) lie outside a window."""
    lost = share_outside(labels.as_tensor()[0] != 0, window)
    if lost > MOST:
        raise DataError(
            f"{volume_name(labels)}: {lost:.0%} of the labelled voxels lie outside the crop about the brain; check that labels "
            "and images belong together."
        )
