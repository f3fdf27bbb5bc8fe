"""How much of a volume survives its code: scores, bounds to hold them against, structures, and statistics of codes.

HA-GAN's volumes are cubes (1, N, N, N) or batches (b, 1, N, N, N) in [-1, 1]. The scores are taken on [0, 1], where black is 0:
see `recovery_scores`.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import ndimage
from torch import nn

from medsynth_lib.data.preparation.cubes import CubeContract, prepare_cube, to_hu
from medsynth_lib.data.simulation.atlas import STRUCTURES
from medsynth_lib.data.simulation.subject import Subject
from medsynth_lib.evaluation.ct import LUNG
from medsynth_lib.evaluation.generation import distances, in_batches
from medsynth_lib.evaluation.hagan_inference import decode_in_parts, encode, sample
from medsynth_lib.evaluation.image import nmse, psnr, ssim_map
from medsynth_lib.evaluation.segmentation import dice
from medsynth_lib.evaluation.statistics import mean_with_sd, paired_t
from medsynth_lib.training.hagan import features, low_resolution

BACKGROUND = -0.9  # of a T1 cube: what is darker lies outside the brain
GROUPS = {  # the smallest structures (a few dozen voxels a side at 64^3) with a neighbour, scored as one
    "putamen + pallidum": ("putamen", "pallidum"),
    "hippocampus + amygdala": ("hippocampus", "amygdala"),
}


# -- scores --------------------------------------------------------------------------------------------------------------------


def foreground(cube: torch.Tensor, modality: str) -> np.ndarray:
    """Mark the brain, or the body with its lungs.

    The body is what is denser than lung, in its largest connected region, with the holes of every axial slice filled.

    Args:
        cube: a real volume (1, N, N, N) in [-1, 1].
        modality: "t1", a brain, or "ct", a chest.

    Returns:
        Boolean mask (N, N, N).
    """
    if modality == "t1":
        return (cube[0] > BACKGROUND).numpy()
    pieces, n = ndimage.label(to_hu(cube[0]).numpy() > LUNG)
    body = pieces == 1 + np.argmax(np.bincount(pieces.ravel(), minlength=n + 1)[1:]) if n else pieces > 0
    return np.stack([ndimage.binary_fill_holes(body[..., k]) for k in range(body.shape[-1])], -1)


def recovery_scores(recovered: torch.Tensor, real: torch.Tensor, mask: np.ndarray) -> dict[str, float]:
    """Score one recovered cube inside a mask and over the whole cube (Table V).

    Cubes are scored as v = (x + 1) / 2 in [0, 1]. PSNR = -10 log10 of the mean squared error (peak 1);
    NMSE = ||v - v_real||^2 / ||v_real||^2; SSIM as in `image.ssim_map`.

    Args:
        recovered: (1, N, N, N) in [-1, 1].
        real: (1, N, N, N) in [-1, 1].
        mask: (N, N, N).

    Returns:
        ssim, nmse and psnr (dB) inside the mask; "whole ssim", "whole nmse" and "whole psnr".
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


def recovery_table(recovered: torch.Tensor, real: torch.Tensor, masks: Sequence[np.ndarray]) -> pd.DataFrame:
    """Take the `recovery_scores` of volumes (b, 1, N, N, N), one row each."""
    return pd.DataFrame([recovery_scores(*each) for each in zip(recovered, real, masks, strict=True)])


def recovery_errors(networks: Mapping[str, nn.Module], volumes: Iterable[torch.Tensor], depth: int) -> np.ndarray:
    """Take the L1 error of every volume after encoding and decoding, one at a time.

    Args:
        networks: of a HAGAN, by name.
        volumes: each (1, N, N, N) in [-1, 1].
        depth: slices of a sub-volume.

    Returns:
        One error a volume.
    """
    errors = []
    for x in volumes:
        again = decode_codes(networks, encode_volumes(networks, x[None], depth))
        errors.append(float((again - x).abs().mean()))
    return np.array(errors)


def recovery_summary(tables: Mapping[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Average tables of `recovery_table`, a row each.

    Returns: the means; and means with standard deviations over volumes, as text.
    """
    means = pd.DataFrame({name: table.mean() for name, table in tables.items()}).T
    digits = {name: 1 if "psnr" in name else 3 for name in means}
    return means, pd.DataFrame({name: mean_with_sd(table, digits) for name, table in tables.items()}).T


def compare_scores(new: pd.DataFrame, old: pd.DataFrame) -> dict[str, str]:
    """Test whether one way to recover beats another, paired and one-sided (Table VI).

    Args:
        new: of `recovery_table`.
        old: of the same volumes.

    Returns:
        By score inside the mask, as text: the mean of ``new`` minus ``old``, and p. A small NMSE is good.
    """
    better = {"ssim": "greater", "nmse": "less", "psnr": "greater"}
    tests = {score: paired_t(new[score], old[score], side) for score, side in better.items()}
    return {score: f"{difference:+.3f}, p = {p:.2g}" for score, (difference, p) in tests.items()}


# -- recovered volumes and bounds ----------------------------------------------------------------------------------------------


def encode_volumes(networks: Mapping[str, nn.Module], x: torch.Tensor, depth: int) -> torch.Tensor:
    """Encode volumes (b, 1, N, N, N), four at a time, into codes (b, latent).

    The encoder sees sub-volumes of ``depth`` slices.
    """
    return in_batches(lambda v: encode(networks["E^H"], networks["E^G"], v, depth), x)


def decode_codes(networks: Mapping[str, nn.Module], z: torch.Tensor, average: bool = False) -> torch.Tensor:
    """Decode codes (b, latent), four at a time, into volumes (b, 1, N, N, N).

    The generator decodes, or its running mean.
    """
    prefix = "mean " if average else ""
    return in_batches(lambda v: sample(networks[f"{prefix}G^A"], networks[f"{prefix}G^H"], v), z)


def decode_features(networks: Mapping[str, nn.Module], x: torch.Tensor, depth: int) -> torch.Tensor:
    """Recover volumes (b, 1, N, N, N) from their features alone (equation 6).

    The sub-volumes are decoded one by one.
    """
    return in_batches(lambda v: decode_in_parts(networks["G^H"], features(networks["E^H"], v, depth), depth), x)


def recovery_and_bounds(
    networks: Mapping[str, nn.Module], x: torch.Tensor, z: torch.Tensor, train: torch.Tensor, depth: int
) -> dict[str, torch.Tensor]:
    """Recover held-out volumes from their codes and features, and make the references.

    The references need neither codes nor features.

    Args:
        networks: of a HAGAN, by name, with the running mean of its generator.
        x: held-out volumes (b, 1, N, N, N) in [-1, 1].
        z: their codes (b, latent).
        train: training volumes (n, 1, N, N, N).
        depth: slices of a sub-volume.

    Returns:
        Volumes (b, 1, N, N, N) by the way they came about. The running mean is left out where it recovers the same.
    """
    common, high = networks["G^A"], networks["G^H"]
    found = {
        "from the code": decode_codes(networks, z),
        "from the code, in parts": in_batches(lambda v: decode_in_parts(high, common(v), depth), z),
    }
    averaged = decode_codes(networks, z, average=True)
    if not torch.allclose(averaged, found["from the code"], atol=1e-3):
        found["from the code, running mean"] = averaged
    return found | {
        "features alone, in parts (eq. 6)": decode_features(networks, x, depth),
        "features alone, whole": in_batches(lambda v: high(features(networks["E^H"], v, depth)), x),
        "mean training volume": train.mean(0, keepdim=True).expand_as(x),
        "nearest training volume": nearest(x, train),
        "X^L up-sampled": up_sampled(low_resolution(x)),
    }


def nearest(volumes: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    """Find for each volume (b, ...) the training volume (n, ...) with least squared error."""
    return train[distances(volumes, train).argmin(1)]


def up_sampled(low: torch.Tensor, factor: int = 4) -> torch.Tensor:
    """Up-sample X^L trilinearly to the size of the volume that it was taken from.

    Voxel j lies at j / factor of the low-resolution volume; behind its last voxel that one is repeated. (`F.interpolate`
    would take X^L for means over blocks and shift the volume by half a block.)

    Args:
        low: every ``factor``-th voxel of a volume, (b, 1, n, n, n).
        factor: voxels of the volume that one of X^L stands for, along each axis.

    Returns:
        (b, 1, n factor, n factor, n factor).
    """
    n = low.shape[-1]
    place = (torch.arange(n * factor) / factor).clamp(max=n - 1)
    weight = (1 - (place[:, None] - torch.arange(n)).abs()).clamp(min=0).to(low)  # (n factor, n), rows sum to 1
    return torch.einsum("bcxyz,ix,jy,kz->bcijk", low, weight, weight, weight)


# -- structures ----------------------------------------------------------------------------------------------------------------


def structure_dice(labels: ArrayLike, truth: ArrayLike) -> dict[str, float]:
    """Take the Dice of structures and groups of them between two label volumes (Fig. 6).

    Args:
        labels: (x, y, z), index into `atlas.STRUCTURES`.
        truth: (x, y, z), the same.

    Returns:
        Dice by name; nan for what is in neither volume.
    """
    masks: dict[str, tuple[int, ...]] = {name: (STRUCTURES.index(name),) for name in STRUCTURES[1:]}
    masks |= {name: tuple(map(STRUCTURES.index, parts)) for name, parts in GROUPS.items()}
    return {name: dice(np.isin(labels, index), np.isin(truth, index)) for name, index in masks.items()}


def mean_structure_dice(labels: Iterable[ArrayLike], truth: Iterable[ArrayLike]) -> pd.Series:
    """Average `structure_dice` over pairs of label volumes; nan for what is in none of them."""
    return pd.DataFrame([structure_dice(a, b) for a, b in zip(labels, truth, strict=True)]).mean()


def structure_voxels(labels: Sequence[ArrayLike]) -> pd.Series:
    """Count the voxels of every structure and group: means over label volumes.

    Label volumes are (x, y, z).
    """
    names = [*STRUCTURES[1:], *GROUPS]
    parts = {name: [STRUCTURES.index(part) for part in GROUPS.get(name, (name,))] for name in names}
    return pd.Series({name: float(np.mean([np.isin(v, parts[name]).sum() for v in labels])) for name in names})


def resampling_dice(person: Subject, contract: CubeContract) -> dict[str, float]:
    """Take the Dice that is left after a subject's labels went to the cube and back.

    What is missing to 1 is the cost of the grid alone.

    Args:
        person: a simulated subject.
        contract: the preparation of the cube.

    Returns:
        Dice by name; nan for what the subject lacks.
    """
    from monai.data import MetaTensor  # MONAI takes seconds to import
    from monai.transforms import ResampleToMatch

    labels = MetaTensor(torch.from_numpy(person.structures())[None], affine=person.affine)
    brain = MetaTensor(torch.from_numpy(person.brain).float()[None], affine=person.affine)
    resample = ResampleToMatch(mode="nearest", padding_mode="zeros")
    back = resample(resample(labels, prepare_cube(brain, contract)), labels)
    return structure_dice(back[0], labels[0])


# -- codes ---------------------------------------------------------------------------------------------------------------------


def code_statistics(codes: torch.Tensor) -> pd.Series:
    """Describe codes in numbers that are known for N(0, I); `expected_statistics` has them.

    Args:
        codes: (n, d).

    Returns:
        mean: root mean square over dimensions of the mean code. sd: mean over dimensions of the standard deviation. norm:
        mean length. correlation: root mean square of the correlation of two dimensions. directions: how many directions
        share the variance, (sum of l)^2 / sum of l^2 of the covariance's eigenvalues l.
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


def expected_statistics(n: int, d: int) -> pd.Series:
    """State the `code_statistics` that n codes of N(0, I) in d dimensions have, but for chance."""
    return pd.Series(
        {"mean": n**-0.5, "sd": 1.0, "norm": d**0.5, "correlation": (n - 1) ** -0.5, "directions": 1 / (1 / d + 1 / n)}
    )


def mean_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Average the cosine between paired codes (n, d).

    It is 0 where they are unrelated and 1 where they point the same way.
    """
    return float(torch.cosine_similarity(a, b).mean())


def pick_codes(encoded: torch.Tensor, random: torch.Tensor, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Pick codes to draw volumes from, in four ways.

    Args:
        encoded: codes (n, d) of training volumes.
        random: codes (n, d) from N(0, I).
        count: how many of each.
        seed: of the Gaussian.

    Returns:
        Codes (count, d) by the way they are picked: random; a Gaussian with the encoded codes' mean and covariance, shrunk
        after Ledoit & Wolf (2004); half-way between two encoded codes; encoded.
    """
    from sklearn.covariance import LedoitWolf

    fit = LedoitWolf().fit(encoded.numpy())
    rng = np.random.default_rng(seed)
    gaussian = rng.multivariate_normal(fit.location_, fit.covariance_, count, method="cholesky")
    return {
        "random": random[:count],
        "Gaussian of encoded": torch.from_numpy(gaussian).float(),
        "half-way": (encoded + encoded.roll(1, 0))[:count] / 2,
        "encoded": encoded[:count],
    }
