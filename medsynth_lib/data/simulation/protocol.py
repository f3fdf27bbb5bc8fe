"""What a target scanner would have drawn: source T1 mapped to the target's look by physics, without any target T1.

Known: the acquisition parameters of both sites' T1 (a header or the publication states them), their field strengths, and
relaxation times from the literature. Measured: how bright grey matter is beside white matter in the images there are, the
source's inputs and T1 and the target's inputs. The literature is a prior (`fitted_relaxation`), not the truth.

A Site is used for its ``field`` and ``sequences`` alone, never for its noise, coil field or gain.
"""

import numpy as np
from scipy import ndimage
from scipy.optimize import least_squares
from sklearn.mixture import GaussianMixture

from medsynth_lib.data.simulation.physics import CSF, GM, SEQUENCES, TISSUES, WM

VERSION = 1  # raise when the mathematics below changes: sweep cells of another version are not reused
MAIN = (CSF, GM, WM)  # the tissues whose relaxation times are published; tumour's are assumptions
LITERATURE_SD = 0.1  # of the logarithm of a relaxation time or proton density: how far the literature is trusted
LEVEL_SD = 0.03  # of the logarithm of a measured level: noise, coil, partial volume
PURE_PERCENT = 15  # of the brain: voxels with the smallest gradients, hardly mixed of two tissues
PURE_VOXELS = 40_000  # enough for a mixture of four Gaussians


def literature(rng=None, error=0.0):
    """Relaxation of CSF, grey and white matter: log of T1 and T2 (ms) by field strength, and of the proton density, each (3,).

    With ``rng`` and ``error`` every number gets an independent relative error: what if the literature is wrong?
    """
    table = {"pd": np.array([TISSUES[t].pd for t in MAIN])}
    for field in (1.5, 3.0):
        table["t1", field] = np.array([TISSUES[t].t1[field] for t in MAIN], float)
        table["t2", field] = np.array([TISSUES[t].t2[field] for t in MAIN], float)
    noise = {k: rng.normal(0, error, 3) if rng and k != "pd" else 0 for k in table}
    return {k: np.log(v) + np.log1p(noise[k]) for k, v in table.items()}


def levels(relaxation, sequence, field):
    """Magnitude of CSF and grey matter beside white matter, (3,), the last being 1, in one image."""
    values = (np.exp(relaxation[k]) for k in ("pd", ("t1", field), ("t2", field)))
    signal = np.abs(SEQUENCES[sequence.kind](*values, **sequence.settings))
    return signal / signal[-1]


def measured_levels(volumes, seed=0):
    """How bright grey matter is beside white matter in each contrast (c,), from images (c, x, y, z) of one site's subjects.

    Images in scanner units, zero outside the brain, the T2-weighted one at index -2 and FLAIR last. A mixture of four
    Gaussians on the logarithms of the purest voxels: of its two heaviest components, the darker one in T2 is white matter.
    """
    pooled = np.concatenate([pure(v) / np.median(v[:, (v != 0).all(0)], 1)[:, None] for v in volumes], 1).T
    rng = np.random.default_rng(seed)
    pooled = rng.permutation(pooled)[:PURE_VOXELS]
    mixture = GaussianMixture(4, random_state=seed, n_init=2).fit(np.log(pooled + 0.02))
    heaviest = mixture.means_[np.argsort(mixture.weights_)[-2:]]
    white, grey = np.exp(heaviest[np.argsort(heaviest[:, -2])]) - 0.02
    return grey / white


def pure(volume):
    """Values (c, voxels) of the brain voxels of (c, x, y, z) whose neighbourhood is flattest: one tissue, not two."""
    inside = ndimage.binary_erosion((volume != 0).all(0))
    steepness = sum(ndimage.generic_gradient_magnitude(c / np.median(c[inside]), ndimage.sobel) for c in volume)
    return volume[:, inside & (steepness < np.percentile(steepness[inside], PURE_PERCENT))]


def fitted_relaxation(prior, observations):
    """Relaxation that agrees with the images and stays near the literature: the most probable one (MAP).

    ``observations``: list of (sequence, field, measured grey matter beside white matter). Errors of both are normal in the
    logarithm, with LITERATURE_SD and LEVEL_SD. A contrast that hardly depends on a parameter leaves it at its prior.
    """
    keys = list(prior)

    def unpack(shift):
        return {k: prior[k] + s for k, s in zip(keys, LITERATURE_SD * shift.reshape(len(keys), 3), strict=True)}

    def residuals(shift):
        relaxation = unpack(shift)
        misfit = [np.log(levels(relaxation, seq, field)[1] / level) / LEVEL_SD for seq, field, level in observations]
        return np.concatenate([shift, misfit])

    return unpack(least_squares(residuals, np.zeros(3 * len(keys))).x)


def protocol_curve(source, target, source_relaxation, target_relaxation):
    """The T1 look of the source against the target's: two lists of intensities in units of white matter, to interpolate.

    Points: no signal, CSF, grey matter, white matter, and on from there by proportion.
    """
    x = levels(source_relaxation, source.sequences["t1"], source.field)
    y = levels(target_relaxation, target.sequences["t1"], target.field)
    return np.array([0, *x, 3 * x[-1]]), np.array([0, *y, 3 * y[-1]])


def white_level(t1):
    """Brightness of white matter in a T1 image (x, y, z), zero outside the brain: the brightest peak of its histogram."""
    values = t1[t1 > 0]
    top = np.percentile(values, 99.5)
    counts, edges = np.histogram(values, 100, (0, top))
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 3)
    upper = np.arange(100) >= 50  # white matter is above half of the range in every T1 weighting
    peaks = np.flatnonzero(
        (smooth >= np.roll(smooth, 1)) & (smooth >= np.roll(smooth, -1)) & upper & (np.arange(100) < 98)
    )
    return edges[peaks[-1]] + top / 200 if len(peaks) else np.percentile(values, 90)


def map_t1(t1, curve):
    """A source T1 (x, y, z) in scanner units in the target's look, in units of white matter; 0 stays 0."""
    x, y = curve
    return np.interp(t1 / white_level(t1), x, y).astype(np.float32) * (t1 != 0)
