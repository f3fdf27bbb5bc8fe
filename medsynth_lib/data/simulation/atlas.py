"""The embedded anatomy: the MNI152 average brain that the nilearn package carries, with the maps a subject is made from.

Template: MNI ICBM 152 non-linear symmetric 2009a (Fonov et al. 2011, NeuroImage 54:313), 1 mm, skull-stripped, with its
grey- and white-matter probability maps. Coordinates are MNI millimetres (x right, y anterior, z superior).
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import nilearn.datasets
import numpy as np
import torch
from scipy import ndimage as ndi

from medsynth_lib.data.files.nifti import read_volume
from medsynth_lib.data.simulation.fields import gaussian_blur
from medsynth_lib.files import atomic, cache_folder

VERSION = 1  # raise when a map changes: it is part of the cache's name
MAPS = ("wm", "gm", "csf", "ventricle", "rim", "deep")
STRUCTURES = (
    "background",
    "cerebral white matter",
    "cerebral cortex",
    "lateral ventricle",
    "cerebellar white matter",
    "cerebellar cortex",
    "thalamus",
    "caudate",
    "putamen",
    "pallidum",
    "brainstem",
    "hippocampus",
    "amygdala",
)

# Approximate: ellipsoids (centre, semi-axes, mm) around published MNI coordinates of each structure on the right side,
# cut by the tissue maps. They are good for volumes and positions, not a segmentation reference.
ELLIPSOIDS: dict[str, Any] = {
    "thalamus": [((11, -19, 8), (9, 14, 9))],
    "caudate": [((12, 14, 5), (6, 11, 10)), ((14, -3, 19), (5, 15, 6))],
    "putamen": [((26, 2, 1), (6.5, 16, 11))],
    "pallidum": [((18.5, -4, -1), (5.5, 9, 6))],
    "amygdala": [((22, -5, -18), (8, 8, 7))],
    "brainstem": [((0, -41, -52), (9, 9, 16)), ((0, -27, -33), (17, 13, 15)), ((0, -26, -13), (15, 11, 12))],
    "cerebellum": [((0, -64, -37), (57, 34, 29))],
}


@dataclass(frozen=True)
class Atlas:
    """Maps (6, X, Y, Z) in [0, 1], structure labels, the ventricular push field, and their world-to-voxel matrices."""

    maps: torch.Tensor
    labels: torch.Tensor  # (1, X, Y, Z), index into STRUCTURES
    push: torch.Tensor  # (3, X/2, Y/2, Z/2): unit vectors away from the ventricle, fading into brain and ventricle
    world_to_voxel: np.ndarray
    world_to_push: np.ndarray
    tumour_centres: np.ndarray  # (n, 3) mm: places in deep white matter, away from the ventricles


def template_path(kind: str) -> Path:
    """Return the path of the template's "t1", "gm" or "wm" map inside the nilearn package."""
    path = Path(nilearn.datasets.__file__).parent / "data" / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is not in this nilearn; install the version in constraints.txt")
    return path


def low_pass_sigma(spacing: float) -> float:
    """Return the sigma (mm) of the blur for a grid: a wider voxel averages more anatomy.

    Args:
        spacing: edge of a voxel in mm.

    Returns:
        0 at the atlas's own 1 mm or finer.
    """
    return 0.35 * spacing if spacing > 1 else 0.0


@lru_cache(maxsize=4)
def atlas(spacing: float = 1.0) -> Atlas:
    """Return the atlas, low-passed for a grid; made once, then read from the cache.

    Args:
        spacing: edge of a voxel in mm.
    """
    path = cache_folder("atlas") / f"mni152-v{VERSION}-{spacing:g}mm.npz"
    if not path.exists():
        _write(path, spacing)
    try:
        return _read(path)
    except (BadZipFile, OSError, ValueError, KeyError, EOFError, zlib.error):
        # damaged in the cache: it can be made again
        _write(path, spacing)
        return _read(path)


def _write(path: Path, spacing: float) -> None:
    """Make the atlas and keep it."""
    arrays = build_maps()
    if sigma := low_pass_sigma(spacing):
        arrays["maps"] = gaussian_blur(torch.from_numpy(arrays["maps"]), [sigma] * 3).numpy()
    arrays["maps"] = np.round(arrays["maps"] * 255).astype(np.uint8)
    with atomic(path) as temporary:
        np.savez(temporary, **arrays)


def _read(path: Path) -> Atlas:
    """The atlas of a file, whose checksums hold."""
    with np.load(path) as a:
        return Atlas(
            torch.from_numpy(a["maps"]).float().div_(255),
            torch.from_numpy(a["labels"])[None],
            torch.from_numpy(a["push"]).float(),
            np.linalg.inv(a["affine"]),
            np.linalg.inv(a["push_affine"]),
            a["tumour_centres"],
        )


def build_maps() -> dict[str, np.ndarray]:
    """Compute all atlas arrays at 1 mm from the template's three maps."""
    images = [read_volume(template_path(kind)) for kind in ("t1", "gm", "wm")]
    t1, gm, wm = (image[0].numpy() / 255 for image in images)
    box = tuple(slice(max(s.start - 3, 0), s.stop + 3) for s in ndi.find_objects((t1 > 0).astype(np.uint8))[0])
    t1, gm, wm = t1[box], gm[box], wm[box]
    affine = images[0].affine.numpy().copy()
    affine[:3, 3] += [s.start for s in box]
    mm = np.meshgrid(
        *(np.arange(n, dtype=np.float32) + affine[i, 3] for i, n in enumerate(t1.shape)), indexing="ij", sparse=True
    )
    brain = ndi.binary_fill_holes(t1 > 0)
    csf = np.clip(1 - gm - wm, 0, 1) * brain
    ventricle = ventricle_map(csf, brain, mm)
    inside = ventricle > 0.5
    distance = ndi.distance_transform_edt(~inside) - ndi.distance_transform_edt(inside)
    rim = np.exp(-np.maximum(distance, 0) / 2.5) * (distance > 0)
    labels = structure_labels(wm, gm, brain, ventricle, mm)
    nuclei = np.isin(labels, [STRUCTURES.index(n) for n in ("thalamus", "caudate", "putamen", "pallidum")])
    deep = ndi.gaussian_filter(nuclei.astype(np.float32), 0.7)
    white = ndi.distance_transform_edt(ndi.gaussian_filter(wm, 2) > 0.55)
    centres = np.argwhere((white > 3) & (distance > 8) & (mm[2] > -8) & (mm[2] < 50)) + affine[:3, 3]
    push, push_affine = ventricle_push(distance, affine)
    return dict(
        maps=np.stack([wm, gm, csf, ventricle, rim, deep]).astype(np.float32),
        labels=labels,
        push=push,
        affine=affine,
        push_affine=push_affine,
        tumour_centres=centres.astype(np.float32),
    )


def ventricle_map(csf: np.ndarray, brain: np.ndarray, mm: np.ndarray) -> np.ndarray:
    """Find lateral and third ventricles: deep CSF connected to the lateral ventricles' bodies.

    A box leaves the cisterns out.

    Args:
        csf: share of fluid (x, y, z).
        brain: boolean mask (x, y, z).
        mm: MNI position (3, x, y, z) of every voxel.
    """
    x, y, z = mm
    box = (np.abs(x) < 42) & (y > -50) & (y < 34) & (z > -14) & (z < 30) & ~((np.abs(x) < 12) & (y < -30))
    deep = ndi.distance_transform_edt(brain) > 22
    parts, _ = ndi.label((csf > 0.45) & box & deep)
    bodies = (np.abs(np.abs(x) - 9) < 4) & (np.abs(y - 8) < 8) & (np.abs(z - 12) < 8)
    seeds = np.unique(parts[bodies])
    return ndi.binary_dilation(np.isin(parts, seeds[seeds > 0]), iterations=2) * csf


def ventricle_push(distance: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make the vector field that widens the ventricles.

    It is the gradient of the distance to their wall, faded out over 18 mm.

    Args:
        distance: to the wall (x, y, z) in mm, negative inside.
        affine: voxels to mm (4, 4).

    Returns:
        The field (3, x / 2, y / 2, z / 2), and its own affine.
    """
    smooth = ndi.gaussian_filter(distance, 2.0).astype(np.float32)
    fade = np.where(smooth > 0, np.exp(-smooth / 18), np.clip(1 - smooth / smooth.min(), 0, 1))
    push = (np.stack(np.gradient(smooth)) * fade)[:, ::2, ::2, ::2]
    push_affine = affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    return push.astype(np.float16), push_affine


def structure_labels(
    wm: np.ndarray, gm: np.ndarray, brain: np.ndarray, ventricle: np.ndarray, mm: np.ndarray
) -> np.ndarray:
    """Label the twelve structures of HA-GAN's Fig. 6 approximately.

    Args:
        wm, gm: shares of white and grey matter (x, y, z).
        brain: boolean mask (x, y, z).
        ventricle: share of ventricle (x, y, z).
        mm: MNI position (3, x, y, z) of every voxel.

    Returns:
        uint8 index into `STRUCTURES` (x, y, z).
    """
    region = {}
    for name, parts in ELLIPSOIDS.items():
        region[name] = np.zeros(brain.shape, bool)
        for centre, axes in parts:
            region[name] |= ellipsoid((np.abs(mm[0]), *mm[1:]), centre, axes)
    tilted = (np.abs(mm[0]), mm[1], mm[2] + 0.35 * (mm[1] + 22))  # the hippocampus descends towards the front
    region["hippocampus"] = ellipsoid(tilted, (26, -22, -14), (8, 18, 7)) & (gm > 0.4)
    cerebellum = region["cerebellum"] & ~region["brainstem"]
    white = wm > gm
    tissue = brain & (wm + gm > 0.5)
    labels = np.zeros(brain.shape, np.uint8)
    for name, mask in (
        ("cerebral white matter", tissue & white),
        ("cerebral cortex", tissue & ~white),
        ("cerebellar white matter", tissue & white & cerebellum),
        ("cerebellar cortex", tissue & ~white & cerebellum),
        ("brainstem", tissue & region["brainstem"]),
        ("thalamus", tissue & region["thalamus"]),
        ("caudate", region["caudate"] & (gm > 0.5)),
        ("putamen", region["putamen"] & (gm > 0.3)),
        ("pallidum", tissue & region["pallidum"]),
        ("amygdala", region["amygdala"] & (gm > 0.5)),
        ("hippocampus", region["hippocampus"]),
        ("lateral ventricle", (ventricle > 0.5) & (np.abs(mm[0]) > 2)),  # the third ventricle is the midline's
    ):
        labels[mask] = STRUCTURES.index(name)
    return labels


def ellipsoid(mm: np.ndarray, centre: Sequence[float], axes: Sequence[float]) -> np.ndarray:
    """Return which positions (3, ...) lie inside an ellipsoid; centre and semi-axes in mm."""
    return sum(((m - c) / a) ** 2 for m, c, a in zip(mm, centre, axes, strict=True)) < 1
