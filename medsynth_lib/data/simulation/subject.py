"""Simulated patients on real anatomy: one seed is one subject, whatever grid the subject is later scanned on.

A subject is the MNI152 average deformed (size, shape, ventricles, sulci) with, by default, one glioma that has BraTS
labels and pushes tissue aside. It holds tissue fractions and relaxation fields, but no intensities: those are the
scanner's (scanner.py), so that any site can scan the same subject.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medsynth_lib.data.simulation.atlas import MAPS, STRUCTURES, atlas
from medsynth_lib.data.simulation.fields import gaussian_blur, random_field, sample
from medsynth_lib.data.simulation.physics import CSF, DEEP_GM, ENHANCING, GM, NECROSIS, OEDEMA, TISSUES, WM

Axes = list[np.ndarray]  # positions of voxel centres in mm along x, y and z
ToAtlas = tuple[np.ndarray, np.ndarray]  # matrix (3, 3) and shift (3): from the grid to MNI, in mm

BRAIN_CENTRE = np.array([0.0, -18.0, 6.0])  # MNI mm; the middle of the brain's bounding box
BRAIN_SCALE = 0.905  # MNI152 brains are large (1.9 l); this brings the mean into 1.3-1.5 l
NECROTIC_LABEL, OEDEMA_LABEL, ENHANCING_LABEL = 1, 2, 4  # BraTS 2019
STREAMS = {name: i for i, name in enumerate(("shape", "ventricles", "sulci", "tumour", "relaxation"))}


@dataclass(frozen=True)
class Subject:
    """One simulated subject on a grid.

    Attributes:
        fractions: of the tissues (7, x, y, z); they sum to 1 in the brain.
        t1_field, t2_field: relative deviations (x, y, z) of T1 and T2 from the tissue table.
        seg: BraTS labels (0, 1, 2, 4).
        brain: the brain mask.
        coords: MNI position (3, x, y, z) in mm of every voxel before the tumour pushed.
        truth: volumes in ml and the drawn parameters.
    """

    seed: int
    spacing: float
    fractions: torch.Tensor
    t1_field: torch.Tensor
    t2_field: torch.Tensor
    seg: np.ndarray
    brain: np.ndarray
    coords: torch.Tensor
    truth: dict

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels (x, y, z)."""
        return self.seg.shape

    @property
    def affine(self) -> np.ndarray:
        """Voxel index to RAS millimetres, the brain's centre at the origin."""
        affine = np.diag([self.spacing] * 3 + [1.0])
        affine[:3, 3] = [-(n - 1) / 2 * self.spacing for n in self.shape]
        return affine

    def structures(self) -> np.ndarray:
        """Label the twelve structures of HA-GAN's Fig. 6 approximately, the tumour left out.

        Returns:
            uint8 (x, y, z), index into `atlas.STRUCTURES`.
        """
        a = atlas(1.0)
        labels = sample(a.labels.float(), a.world_to_voxel, self.coords, mode="nearest")[0].numpy().astype(np.uint8)
        return np.where(self.brain & (self.seg == 0), labels, 0).astype(np.uint8)


def grid_axes(shape: Sequence[int], spacing: float) -> Axes:
    """Return positions of voxel centres in mm along three axes, centred on zero."""
    return [(np.arange(n) - (n - 1) / 2) * spacing for n in shape]


def generator(seed: int, stream: str) -> np.random.Generator:
    """Return a random stream a part: a changed part leaves the others alone."""
    return np.random.default_rng([seed, STREAMS[stream]])


def make_subject(
    seed: int,
    shape: Sequence[int] = (64, 64, 64),
    spacing: float = 3.0,
    tumour: bool = True,
    ventricle_mm: float | None = None,
) -> Subject:
    """Simulate one subject on a grid.

    Args:
        seed: non-negative integer; the same seed is the same subject at every shape and spacing.
        shape: voxels (x, y, z).
        spacing: edge of a voxel in mm; the field of view must stay within 264 mm.
        tumour: with a glioma (labels 1, 2, 4), or tumour-free.
        ventricle_mm: outward shift of the ventricle wall in mm (-1 to 4.5); drawn from the seed when None.

    Raises:
        ValueError: where the field of view is too large.
    """
    if max(shape) * spacing > 264:
        raise ValueError(f"field of view {max(shape) * spacing:g} mm is wider than 264 mm; use fewer or smaller voxels")
    axes = grid_axes(shape, spacing)
    coords, to_atlas = deform(seed, axes)
    coords, ventricle_mm = widen_ventricles(coords, seed, spacing, ventricle_mm)
    truth = dict(seed=seed, ventricle_mm=ventricle_mm)
    lesion = draw_tumour(seed, spacing) if tumour else None
    sampled_at = push_by_tumour(coords, lesion, axes, to_atlas) if tumour else coords
    a = atlas(float(spacing))
    maps = dict(zip(MAPS, sample(a.maps, a.world_to_voxel, sampled_at), strict=True))
    fractions, brain = tissue_fractions(maps, seed, axes, truth)
    seg = np.zeros(shape, np.uint8)
    if tumour:
        grow_tumour(fractions, seg, coords, maps["ventricle"], brain, lesion, axes, to_atlas, truth)
    t1_field, t2_field = relaxation_fields(seed, axes)
    mask = (brain > 0.5).numpy()
    seg[~mask] = 0
    ml = spacing**3 / 1000
    truth.update(
        brain_ml=float(mask.sum() * ml),
        ventricle_ml=float(torch.minimum(maps["ventricle"], fractions[CSF]).sum() * ml),
        enhancing_ml=float(fractions[ENHANCING].sum() * ml),
        necrotic_ml=float(fractions[NECROSIS].sum() * ml),
        oedema_ml=float((seg == OEDEMA_LABEL).sum() * ml),
    )
    return Subject(seed, float(spacing), fractions, t1_field, t2_field, seg, mask, sampled_at, truth)


def deform(seed: int, axes: Axes) -> tuple[torch.Tensor, ToAtlas]:
    """Draw where each voxel lies in MNI space: a random affine, a broad warp and a finer one.

    Returns:
        Coordinates (3, x, y, z) in mm; matrix (3, 3) and shift (3) of the affine.
    """
    rng = generator(seed, "shape")
    angles = np.deg2rad(rng.normal(0, 4, 3))
    scale = BRAIN_SCALE * np.exp(rng.normal(0, 0.03) + rng.normal(0, 0.025, 3))
    matrix = rotation(angles) @ np.diag(1 / scale)
    shift = BRAIN_CENTRE + rng.normal(0, 1.5, 3)
    x, y, z = (torch.from_numpy(a).float() for a in axes)
    coords = torch.stack(
        [
            float(m[0]) * x[:, None, None] + float(m[1]) * y[:, None] + (float(m[2]) * z + float(t))
            for m, t in zip(matrix, shift, strict=True)
        ]
    )
    coords += random_field(rng, axes, 50, 3).mul_(2.6)
    coords += random_field(rng, axes, 17, 3).mul_(1.1)
    return coords, (matrix, shift)


def rotation(angles: Sequence[float]) -> np.ndarray:
    """Return the rotation matrix of three angles (radians) about x, y and z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    return (
        np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
        @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    )


def widen_ventricles(
    coords: torch.Tensor, seed: int, spacing: float, ventricle_mm: float | None
) -> tuple[torch.Tensor, float]:
    """Sample the atlas nearer to the ventricle's middle, which moves its wall outwards.

    Args:
        coords: MNI position (3, x, y, z) of every voxel in mm.
        seed: of the subject.
        spacing: edge of a voxel in mm.
        ventricle_mm: how far the wall moves; None draws it.

    Returns:
        The new positions, and how far the wall moves.
    """
    if ventricle_mm is None:
        ventricle_mm = float(np.clip(generator(seed, "ventricles").gamma(2.0, 0.9) - 1.0, -1.0, 4.5))
    a = atlas(float(spacing))
    for _ in range(4):  # small steps follow the field as a flow; one large step folds space where the field converges
        coords = coords - sample(a.push, a.world_to_push, coords).mul_(ventricle_mm / 4)
    return coords, ventricle_mm


def draw_tumour(seed: int, spacing: float) -> dict:
    """Draw position (MNI mm), size (mm) and look of a glioma, and the stream of its outline."""
    rng = generator(seed, "tumour")
    centres = atlas(float(spacing)).tumour_centres
    core = rng.uniform(9, 19)
    return dict(
        centre=centres[rng.integers(len(centres))].astype(float),
        core_mm=core,
        oedema_mm=core + rng.uniform(6, 16),
        axes=np.exp(rng.normal(0, 0.18, 3)),
        mass_effect=rng.uniform(0.15, 0.45),
        necrotic=rng.uniform(0.35, 0.75),
        rng=rng,
    )


def tumour_box(lesion: dict, axes: Axes, to_atlas: ToAtlas) -> tuple[slice, ...]:
    """Return the slices of the grid that the tumour and its mass effect can reach.

    Everything else is left alone.
    """
    matrix, shift = to_atlas
    centre = np.linalg.solve(matrix, lesion["centre"] - shift)
    reach = 3 * lesion["core_mm"] * lesion["axes"].max() + 14  # the push beyond is below 0.1 mm; oedema ends earlier
    return tuple(slice(*np.searchsorted(a, (c - reach, c + reach))) for a, c in zip(axes, centre, strict=True))


def push_by_tumour(coords: torch.Tensor, lesion: dict, axes: Axes, to_atlas: ToAtlas) -> torch.Tensor:
    """Push tissue outwards: around the tumour the atlas is sampled nearer to its centre."""
    box = tumour_box(lesion, axes, to_atlas)
    offset, r = tumour_distance(coords[(slice(None), *box)], lesion)
    pushed = coords.clone()
    squeeze = lesion["mass_effect"] * torch.exp(-((r / (1.3 * lesion["core_mm"])) ** 2))
    pushed[(slice(None), *box)] -= offset * squeeze
    return pushed


def tumour_distance(coords: torch.Tensor, lesion: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the offset (3, ...) from the tumour's centre and its ellipsoidal length, in mm."""
    column = (slice(None), None, None, None)
    offset = coords - torch.from_numpy(lesion["centre"]).float()[column]
    return offset, (offset / torch.from_numpy(lesion["axes"]).float()[column]).square().sum(0).sqrt()


def tissue_fractions(
    maps: dict[str, torch.Tensor], seed: int, axes: Axes, truth: dict
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the warped average maps the subject's own sulci, atrophy and white-matter disease.

    The average of many brains is blurred. Noise on the log-odds of the tissues, followed by sharpening (factor 1.9), gives each
    subject a cortex of its own. The ventricles are left out of it: their partial volumes stay linear.

    Args:
        maps: of the atlas, warped, {name: (x, y, z)}.
        seed: of the subject.
        axes: of the grid, in mm.
        truth: atrophy and disease are written there.

    Returns:
        Tissue fractions (7, x, y, z), and the share of brain (x, y, z).
    """
    rng = generator(seed, "sulci")
    noise = random_field(rng, axes, 6, 3)
    atrophy = float(np.clip(rng.normal(0.0, 0.35), -0.6, 0.9))
    disease = float(rng.beta(1.2, 3.0))
    ventricle = maps["ventricle"]
    brain = (maps["wm"] + maps["gm"] + maps["csf"]).clamp_(0, 1)
    logits = torch.stack([maps["wm"], maps["gm"], (maps["csf"] - ventricle).clamp_(min=0)])
    logits = logits.div_((1 - ventricle).clamp_(min=0.05)).add_(0.015).log_().mul_(1.9)
    logits += noise.mul_(torch.tensor([0.55, 0.35, 0.7])[:, None, None, None])
    logits[1] += 0.25
    logits[2] += atrophy
    wm, gm, csf = torch.softmax(logits, 0).mul_(brain * (1 - ventricle))
    csf += ventricle
    fractions = torch.zeros((len(TISSUES), *wm.shape))
    deep = gm * maps["deep"]
    hyperintense = wm * maps["rim"] * (0.6 * disease)  # periventricular, as in old age
    fractions[WM], fractions[GM], fractions[CSF] = wm - hyperintense, gm - deep, csf
    fractions[DEEP_GM], fractions[OEDEMA] = deep, hyperintense
    truth.update(atrophy=atrophy, white_matter_disease=disease)
    return fractions, brain


def grow_tumour(
    fractions: torch.Tensor,
    seg: np.ndarray,
    coords: torch.Tensor,
    ventricle: torch.Tensor,
    brain: torch.Tensor,
    lesion: dict,
    axes: Axes,
    to_atlas: ToAtlas,
    truth: dict,
) -> None:
    """Replace tissue by oedema (along white matter), enhancing rim and necrosis, in place.

    BraTS labels go to `seg`, and the drawn parameters to `truth`.
    """
    box = tumour_box(lesion, axes, to_atlas)
    part, brain = fractions[(slice(None), *box)], brain[box]
    rng, core_mm, spacing = lesion["rng"], lesion["core_mm"], axes[0][1] - axes[0][0]
    local_axes = [a[s] for a, s in zip(axes, box, strict=True)]
    noise = random_field(rng, local_axes, 11, 2) + 0.45 * random_field(rng, local_axes, 5, 2)
    q = coords[(slice(None), *box)]
    _, r = tumour_distance(q, lesion)
    white, tissue = gaussian_blur(
        torch.stack([part[WM], (part[WM] + 0.75 * (part[GM] + part[DEEP_GM])).clamp(0, 1)]), [2.0 / spacing] * 3
    )

    outline = r / core_mm + 0.16 * noise[0]
    core = soft(1 - outline) * (brain * (1 - 0.8 * ventricle[box]) * (0.4 + 0.6 * tissue)).clamp(0, 1)
    necrosis = core * soft(lesion["necrotic"] - outline - 0.18 * noise[1])
    reach = 1 - r / lesion["oedema_mm"] - 0.22 * noise[1] - 0.12 * noise[0] + 0.55 * (white - 0.75)
    oedema = soft(reach) * (1.25 * white).clamp(0, 1) * (1 - core)
    side = float(np.sign(lesion["centre"][0]))
    oedema *= torch.sigmoid(1.5 * (side * q[0] + 1.5))  # gliomas crossing the corpus callosum are left out
    oedema *= (0.8 + 0.12 * noise[1]).clamp(0.45, 1)
    part *= (1 - core) * (1 - oedema)
    part[OEDEMA] += oedema
    part[ENHANCING] += core - necrosis
    part[NECROSIS] += necrosis
    part *= (brain / part.sum(0).clamp_min(1e-3)).clamp(max=1)
    for share, least, label in (
        (oedema, 0.35, OEDEMA_LABEL),
        (core, 0.5, ENHANCING_LABEL),
        (necrosis, 0.5, NECROTIC_LABEL),
    ):
        seg[box][(share > least).numpy()] = label
    x, y, z = lesion["centre"]
    truth.update(core_mm=core_mm, oedema_mm=lesion["oedema_mm"], tumour_x=x, tumour_y=y, tumour_z=z)


def soft(inside: torch.Tensor) -> torch.Tensor:
    """Turn a signed share of a radius into a share of tissue with a soft edge."""
    return torch.sigmoid(9 * inside)


def relaxation_fields(seed: int, axes: Axes) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw relative deviations (x, y, z) of T1 and T2 from the table.

    They are 2 % between subjects and 3 to 4 % within a brain, and they belong to the subject.
    """
    rng = generator(seed, "relaxation")
    between = rng.normal(0, 0.02, 2)
    fields = random_field(rng, axes, 5, 2).mul_(0.6).add_(random_field(rng, axes, 28, 2).mul_(0.6))
    return fields[0].mul_(0.035).add_(float(between[0])), fields[1].mul_(0.04).add_(float(between[1]))


def structure_volumes(subject: Subject) -> dict[str, float]:
    """Return volumes in ml of the twelve approximate structures."""
    counts = np.bincount(subject.structures().ravel(), minlength=len(STRUCTURES))
    return {
        name: float(n * subject.spacing**3 / 1000)
        for name, n in zip(STRUCTURES, counts, strict=True)
        if name != "background"
    }
