"""What a target scanner would have drawn: source T1 mapped to the target's look by physics, without any target T1.

Known: the acquisition parameters of both sites' T1 (a header or the publication states them), their field strengths, and
relaxation times from the literature. Measured: how bright grey matter is beside white matter in the images there are, the
source's inputs and T1 and the target's inputs. The literature is a prior (`fitted_relaxation`), not the truth.

A Site is used for its `field` and `sequences` alone, never for its noise, coil field or gain.
"""

import numpy as np
from scipy import ndimage
from scipy.optimize import least_squares
from sklearn.mixture import GaussianMixture

from medsynth_lib.data.simulation.physics import CSF, GM, SEQUENCES, TISSUES, WM, Sequence
from medsynth_lib.data.simulation.scanner import Site

VERSION = 1  # raise when the mathematics below changes: sweep cells of another version are not reused
Relaxation = dict[str | tuple[str, float], np.ndarray]  # of `literature`
Curve = tuple[np.ndarray, np.ndarray]  # x and y of a piecewise linear curve

MAIN = (CSF, GM, WM)  # the tissues whose relaxation times are published; tumour's are assumptions
LITERATURE_SD = 0.1  # of the logarithm of a relaxation time or proton density: how far the literature is trusted
LEVEL_SD = 0.03  # of the logarithm of a measured level: noise, coil, partial volume
PURE_PERCENT = 15  # of the brain: voxels with the smallest gradients, hardly mixed of two tissues
PURE_VOXELS = 40_000  # enough for a mixture of four Gaussians


def literature(rng: np.random.Generator | None = None, error: float = 0.0) -> Relaxation:
    """Return published relaxation of CSF, grey and white matter.

    Args:
        rng: with it, every number gets an independent relative error: what if the literature is wrong?
        error: standard deviation of that error.

    Returns:
        The logarithm of T1 and T2 (ms), by ("t1", field) and ("t2", field), and of the proton density, by "pd", each (3,).
    """
    table: Relaxation = {"pd": np.array([TISSUES[t].pd for t in MAIN])}
    for field in (1.5, 3.0):
        table["t1", field] = np.array([TISSUES[t].t1[field] for t in MAIN], float)
        table["t2", field] = np.array([TISSUES[t].t2[field] for t in MAIN], float)
    noise = {k: rng.normal(0, error, 3) if rng and k != "pd" else 0 for k in table}
    return {k: np.log(v) + np.log1p(noise[k]) for k, v in table.items()}


def levels(relaxation: Relaxation, sequence: Sequence, field: float) -> np.ndarray:
    """Return the magnitude of CSF, grey and white matter (3,) in one image; white matter is 1.

    Args:
        relaxation: of `literature` or `fitted_relaxation`.
        sequence: what is measured.
        field: in tesla, 1.5 or 3.0.
    """
    values = (np.exp(relaxation[k]) for k in ("pd", ("t1", field), ("t2", field)))
    signal = np.abs(SEQUENCES[sequence.kind](*values, **sequence.settings))
    return signal / signal[-1]


def measured_levels(volumes: list[np.ndarray]) -> np.ndarray:
    """Measure how bright grey matter is beside white matter in each contrast.

    A mixture of four Gaussians describes the logarithms of the purest voxels. Of its two heaviest components, the darker one in
    T2 is white matter.

    Args:
        volumes: images (c, x, y, z) of one site's subjects in scanner units, 0 outside the brain, the T2-weighted one at index
            -2 and FLAIR last.

    Returns:
        Grey over white matter (c,).
    """
    pooled = np.concatenate([pure(v) / np.median(v[:, (v != 0).all(0)], 1)[:, None] for v in volumes], 1).T
    pooled = np.random.default_rng(0).permutation(pooled)[:PURE_VOXELS]
    mixture = GaussianMixture(4, random_state=0, n_init=2).fit(np.log(pooled + 0.02))
    heaviest = mixture.means_[np.argsort(mixture.weights_)[-2:]]
    white, grey = np.exp(heaviest[np.argsort(heaviest[:, -2])]) - 0.02
    return grey / white


def pure(volume: np.ndarray) -> np.ndarray:
    """Return values (c, voxels) of the brain voxels whose neighbourhood is flattest.

    They hold one tissue, not two.

    Args:
        volume: images (c, x, y, z) of one subject, 0 outside the brain.
    """
    inside = ndimage.binary_erosion((volume != 0).all(0))
    steepness = sum(ndimage.generic_gradient_magnitude(c / np.median(c[inside]), ndimage.sobel) for c in volume)
    return volume[:, inside & (steepness < np.percentile(steepness[inside], PURE_PERCENT))]


def fitted_relaxation(prior: Relaxation, observations: list[tuple[Sequence, float, float]]) -> Relaxation:
    """Find the relaxation that agrees with the images and stays near the literature (MAP).

    Errors of both are normal in the logarithm, with `LITERATURE_SD` and `LEVEL_SD`. A contrast that hardly depends on a parameter
    leaves it at its prior.

    Args:
        prior: of `literature`.
        observations: (sequence, field in tesla, measured grey matter beside white matter).
    """
    keys = list(prior)

    def unpack(shift: np.ndarray) -> Relaxation:
        return {k: prior[k] + s for k, s in zip(keys, LITERATURE_SD * shift.reshape(len(keys), 3), strict=True)}

    def residuals(shift: np.ndarray) -> np.ndarray:
        relaxation = unpack(shift)
        misfit = [np.log(levels(relaxation, seq, field)[1] / level) / LEVEL_SD for seq, field, level in observations]
        return np.concatenate([shift, misfit])

    return unpack(least_squares(residuals, np.zeros(3 * len(keys))).x)


def protocol_curve(source: Site, target: Site, source_relaxation: Relaxation, target_relaxation: Relaxation) -> Curve:
    """Make the curve from the T1 look of the source to that of the target.

    Its points are no signal, CSF, grey matter, white matter, and on from there by proportion.

    Args:
        source, target: scanners; their field and T1 sequence count.
        source_relaxation, target_relaxation: of the tissues there.

    Returns:
        Two arrays of intensities in units of white matter, to interpolate.
    """
    x = levels(source_relaxation, source.sequences["t1"], source.field)
    y = levels(target_relaxation, target.sequences["t1"], target.field)
    return np.array([0, *x, 3 * x[-1]]), np.array([0, *y, 3 * y[-1]])


def white_level(t1: np.ndarray) -> float:
    """Return the brightness of white matter in a T1 image: the brightest peak of its histogram.

    Args:
        t1: (x, y, z), 0 outside the brain.
    """
    values = t1[t1 > 0]
    top = np.percentile(values, 99.5)
    counts, edges = np.histogram(values, 100, (0, top))
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 3)
    upper = np.arange(100) >= 50  # white matter is above half of the range in every T1 weighting
    peaks = np.flatnonzero(
        (smooth >= np.roll(smooth, 1)) & (smooth >= np.roll(smooth, -1)) & upper & (np.arange(100) < 98)
    )
    return edges[peaks[-1]] + top / 200 if len(peaks) else np.percentile(values, 90)


def map_t1(t1: np.ndarray, curve: Curve) -> np.ndarray:
    """Give a source T1 the look of the target.

    Args:
        t1: (x, y, z) in scanner units; 0 stays 0.
        curve: of `protocol_curve`.

    Returns:
        float32 (x, y, z) in units of white matter.
    """
    x, y = curve
    return np.interp(t1 / white_level(t1), x, y).astype(np.float32) * (t1 != 0)
