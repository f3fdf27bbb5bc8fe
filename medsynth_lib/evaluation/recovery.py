"""How much of a volume survives its code: scores, bounds to hold them against, structures, and statistics of codes.

HA-GAN's volumes are cubes (1, N, N, N) or batches (b, 1, N, N, N) in [-1, 1]. The scores are taken on [0, 1], where black is 0:
see `recovery_scores`.
"""

import numpy as np
import pandas as pd
import torch
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from scipy import ndimage

from medsynth_lib.data.preparation.cubes import prepare_cube, to_hu
from medsynth_lib.data.simulation.atlas import STRUCTURES
from medsynth_lib.evaluation.ct import LUNG
from medsynth_lib.evaluation.generation import distances
from medsynth_lib.evaluation.image import nmse, psnr, ssim_map
from medsynth_lib.evaluation.segmentation import dice

BACKGROUND = -0.9  # of a T1 cube: what is darker lies outside the brain
GROUPS = {  # the smallest structures (a few dozen voxels a side at 64^3) with a neighbour, scored as one
    "putamen + pallidum": ("putamen", "pallidum"),
    "hippocampus + amygdala": ("hippocampus", "amygdala"),
}


def foreground(cube, modality):
    """Mask (N, N, N) of a real cube (1, N, N, N): the brain ("t1"), or the body with its lungs ("ct").

    The body is what is denser than lung, in its largest piece, with the holes of every axial slice filled.
    """
    if modality == "t1":
        return (cube[0] > BACKGROUND).numpy()
    pieces, n = ndimage.label(to_hu(cube[0]).numpy() > LUNG)
    body = pieces == 1 + np.argmax(np.bincount(pieces.ravel(), minlength=n + 1)[1:]) if n else pieces > 0
    return np.stack([ndimage.binary_fill_holes(body[..., k]) for k in range(body.shape[-1])], -1)


def recovery_scores(recovered, real, mask):
    """SSIM, NMSE and PSNR of one cube against the real one, inside the mask and over the whole cube ("whole ...").

    Cubes (1, N, N, N) in [-1, 1] are scored as v = (x + 1) / 2 in [0, 1]. PSNR = -10 log10 of the mean squared error (peak 1);
    NMSE = ||v - v_real||^2 / ||v_real||^2; SSIM as in `image.ssim_map`.
    """
    v, v_real = (recovered + 1) / 2, (real + 1) / 2
    similarity = ssim_map(v, v_real)
    return {
        "ssim": float(similarity[mask].mean()),
        "nmse": nmse(v, v_real, mask),
        "psnr": psnr(v, v_real, mask),
        "whole ssim": float(similarity.mean()),
        "whole nmse": nmse(v, v_real),
        "whole psnr": psnr(v, v_real),
    }


def nearest(volumes, train):
    """Of each volume (b, ...) the training volume (n, ...) with the smallest squared error, found by looking at the volume."""
    return train[distances(volumes, train).argmin(1)]


def up_sampled(low, factor=4):
    """Trilinear up-sampling of X^L (b, 1, n, n, n), every ``factor``-th voxel of a volume, back to (b, 1, n factor, ...).

    Voxel j lies at j / factor of the small volume; behind its last voxel that one is repeated. (`F.interpolate` would take X^L
    for means over blocks and shift the volume by half a block.)
    """
    n = low.shape[-1]
    place = (torch.arange(n * factor) / factor).clamp(max=n - 1)
    weight = (1 - (place[:, None] - torch.arange(n)).abs()).clamp(min=0).to(low)  # (n factor, n), rows sum to 1
    return torch.einsum("bcxyz,ix,jy,kz->bcijk", low, weight, weight, weight)


def structure_dice(labels, truth):
    """Dice of every structure and group of structures between two label volumes, a dictionary by name; nan where in neither."""
    masks = {name: (STRUCTURES.index(name),) for name in STRUCTURES[1:]}
    masks |= {name: tuple(map(STRUCTURES.index, parts)) for name, parts in GROUPS.items()}
    return {name: dice(np.isin(labels, index), np.isin(truth, index)) for name, index in masks.items()}


def resampling_dice(person, contract):
    """`structure_dice` of a simulated subject's labels after the way to the cube's grid and back: what the grid alone costs."""
    labels = MetaTensor(torch.from_numpy(person.structures())[None], affine=person.affine)
    brain = MetaTensor(torch.from_numpy(person.brain).float()[None], affine=person.affine)
    resample = ResampleToMatch(mode="nearest", padding_mode="zeros")
    back = resample(resample(labels, prepare_cube(brain, contract)), labels)
    return structure_dice(back[0], labels[0])


def code_statistics(codes):
    """One row about codes (n, d), in numbers that are known for N(0, I).

    mean: root mean square over dimensions of the mean code (0 up to 1 / sqrt(n)). sd: mean over dimensions of the standard
    deviation (1). norm: mean length (about sqrt(d)). correlation: root mean square of the correlation of two dimensions
    (about 1 / sqrt(n - 1) for independent ones). directions: (sum of l)^2 / sum of l^2 of the covariance's eigenvalues l: how
    many directions share the variance (about 1 / (1 / d + 1 / n) for n independent codes).
    """
    n, d = codes.shape
    covariance = torch.cov(codes.T.double())
    sd = covariance.diagonal().sqrt()
    correlation = covariance / torch.outer(sd, sd)
    off = correlation[~torch.eye(d, dtype=torch.bool)].nan_to_num(0.0)  # a dimension that never changes
    return pd.Series(
        {
            "mean": float(codes.mean(0).square().mean().sqrt()),
            "sd": float(sd.mean()),
            "norm": float(codes.norm(dim=1).mean()),
            "correlation": float(off.square().mean().sqrt()),
            "directions": float(covariance.trace() ** 2 / covariance.square().sum()),
        }
    )
