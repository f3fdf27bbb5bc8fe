"""What a chest CT holds, measured from its Hounsfield units alone: lung, fat, bone and emphysema.

Thresholds, HU:

- lung: below -500, half-way between inflated lung and soft tissue; not open to the air around the body.
- emphysema: lung below -950, the usual density mask (Gevenois et al. 1995; the paper's [44], Wang et al. 2013, discusses others).
- fat: -190 to -30, the usual range for adipose tissue (as in the literature of the paper's [43], Lee et al. 2018).
- bone: above 150, the upper end of the usual range of muscle (-29 to 150).

The paper leaves its own criteria to a supplement; these are the common ones, quoted from secondary sources.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

LUNG, EMPHYSEMA, FAT, BONE = -500.0, -950.0, (-190.0, -30.0), 150.0
EDGE_MM = 4.0  # voxels this near to lung mix it with soft tissue, and so pass through the range of fat
SMALLEST_LUNG = 200.0  # ml


def measure(hu: ArrayLike, spacing: Sequence[float]) -> dict[str, float]:
    """Measure the volumes of one chest CT.

    Air in bronchi open to the lung is below -950, too: chests without emphysema measure a little above 0.

    Args:
        hu: (x, y, z) in Hounsfield units.
        spacing: voxel size (3) in mm.

    Returns:
        lung_ml, emphysema_percent (of the lung, 0 to 100), fat_ml and bone_ml.

    Raises:
        ValueError: there is no lung.
    """
    masks = tissue_masks(hu, spacing)
    ml = {name: float(mask.sum() * np.prod(spacing) / 1000) for name, mask in masks.items()}
    return dict(
        lung_ml=ml["lung"],
        emphysema_percent=100 * ml["emphysema"] / ml["lung"],
        fat_ml=ml["fat"],
        bone_ml=ml["bone"],
    )


def tissue_masks(hu: ArrayLike, spacing: Sequence[float]) -> dict[str, np.ndarray]:
    """Mark lung, emphysema, fat and bone by the thresholds above.

    Args:
        hu: (x, y, z) in Hounsfield units.
        spacing: voxel size (3) in mm.

    Returns:
        Boolean masks (x, y, z) by name.

    Raises:
        ValueError: there is no lung.
    """
    hu = np.asarray(hu)
    lung = lung_mask(hu, spacing)
    edge = lung
    for axis, mm in enumerate(spacing):
        edge = ndimage.maximum_filter1d(edge, 2 * max(1, round(EDGE_MM / mm)) + 1, axis=axis)
    return dict(
        lung=lung,
        emphysema=lung & (hu < EMPHYSEMA),
        fat=(hu > FAT[0]) & (hu < FAT[1]) & ~edge,
        bone=hu > BONE,
    )


def lung_mask(hu: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Find the lung: air-like voxels not open to the sides of the image, with holes filled.

    The holes are vessels. Windpipe and bronchi stay in where they are open to the lung, about 1 % of its volume.

    Args:
        hu: (x, y, z) in Hounsfield units.
        spacing: voxel size (3) in mm.

    Returns:
        Boolean mask (x, y, z) of the connected regions of at least 200 ml.

    Raises:
        ValueError: there is no such region.
    """
    pieces, n = ndimage.label(hu < LUNG)
    sides = np.concatenate([pieces[[0, -1]].ravel(), pieces[:, [0, -1]].ravel()])
    ml = np.bincount(pieces.ravel(), minlength=n + 1) * np.prod(spacing) / 1000
    keep = ml >= SMALLEST_LUNG
    keep[np.unique(sides)] = False
    keep[0] = False
    if not keep.any():
        raise ValueError("no lung found: no closed region of at least 200 ml below -500 HU; is the image in HU?")
    mask = keep[pieces]
    return mask | (ndimage.binary_closing(mask, iterations=1) & (hu < BONE))
