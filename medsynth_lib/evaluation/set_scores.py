r"""Scores of a set of generated volumes against a set of real ones (HA-GAN paper, section IV-B, Table II).

A score compares features of volumes, and never stands alone: `scored` gives it with both n, its floor (real against
real), an interval and the extractor that made the features. Scores of two extractors are not comparable.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from medsynth_lib.files import DataError


@dataclass(frozen=True)
class Features:
    """Features of a set of volumes and where they come from."""

    values: np.ndarray  # (n, d), float64
    extractor: str  # a hash of the extractor's weights, or the name of a fixed measurement
    preparation: str  # the contract by which volumes were prepared

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: np.ndarray | slice) -> "Features":
        return Features(self.values[index], self.extractor, self.preparation)


@dataclass(frozen=True)
class Score:
    """A distance between two sets, with what it takes to read it."""

    name: str
    value: float
    n_real: int
    n_fake: int
    n: int  # volumes of either set in one comparison; value and floor are means over such comparisons
    floor: float  # the same distance between two disjoint sets of n real volumes
    interval: tuple[float, float]  # holds 95 % of the comparisons' values
    extractor: str


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    r"""Measure the Frechet distance between Gaussians fitted to two sets.

    It is $|\mu_1 - \mu_2|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1 C_2)^{1/2})$.

    The trace of the root is the sum of the singular values of $A_1^T A_2$, where $C = A A^T$. It exists for singular
    covariances, too, and needs no complex numbers.

    Args:
        real, fake: features (n, d) and (m, d), at least two rows each.

    Returns: the squared distance, from 0; with features of a ResNet it is called FID.
    """
    (mean_1, a_1), (mean_2, a_2) = _gaussian(real), _gaussian(fake)
    cross = np.linalg.svd(a_1.T @ a_2, compute_uv=False).sum()
    distance = ((mean_1 - mean_2) ** 2).sum() + (a_1**2).sum() + (a_2**2).sum() - 2 * cross
    return max(float(distance), 0.0)  # rounding leaves -1e-13 for equal sets


def _gaussian(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d) and a factor A (d, n) of the unbiased covariance A A^T."""
    mean = x.mean(0)
    return mean, (x - mean).T / np.sqrt(len(x) - 1)


def median_bandwidth(real: np.ndarray) -> float:
    """Find the median distance between different volumes, a Gaussian kernel's usual bandwidth."""
    return float(np.median(cdist(real, real)[np.triu_indices(len(real), 1)]))


def gaussian_kernel(bandwidth: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    r"""Make the kernel $\exp(-|x - y|^2 / (2 h^2))$ with bandwidth h."""
    return lambda x, y: np.exp(-cdist(x, y, "sqeuclidean") / (2 * bandwidth**2))


def polynomial_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    r"""Compute $(x^T y / d + 1)^3$, the kernel of KID (Binkowski et al. 2018)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def squared_mmd(kernel: Callable, real: np.ndarray, fake: np.ndarray) -> float:
    """Estimate the squared maximum mean discrepancy without bias.

    It is 0 in the mean for equal distributions, so single values lie below 0, too.
    """
    return _mmd_of_gram(kernel(np.concatenate([real, fake]), np.concatenate([real, fake])), len(real))


def mmd_p_value(kernel: Callable, real: np.ndarray, fake: np.ndarray, permutations: int = 999, seed: int = 0) -> float:
    """Test the squared MMD by permutation: how many relabellings reach its value?

    Returns: p in (0, 1]; its smallest value is 1 / (permutations + 1).
    """
    both, rng = np.concatenate([real, fake]), np.random.default_rng(seed)
    gram = kernel(both, both)
    observed = _mmd_of_gram(gram, len(real))
    orders = (rng.permutation(len(both)) for _ in range(permutations))
    larger = sum(_mmd_of_gram(gram[np.ix_(order, order)], len(real)) >= observed for order in orders)
    return (1 + larger) / (1 + permutations)


def _mmd_of_gram(gram: np.ndarray, n: int) -> float:
    """Squared MMD of the first n rows against the others."""

    def mean_of_pairs(block: np.ndarray) -> float:
        return (block.sum() - np.trace(block)) / (len(block) * (len(block) - 1))

    return float(mean_of_pairs(gram[:n, :n]) + mean_of_pairs(gram[n:, n:]) - 2 * gram[:n, n:].mean())


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Measure quality and coverage by nearest neighbours (Kynkaanniemi et al. 2019).

    Args:
        real, fake: features (n, d) and (m, d).
        k: the neighbour whose distance is the radius of a volume's ball.

    Returns: precision, the share of generated volumes inside a ball of a real one; recall, the reverse; both 0 to 1.
    """
    between = cdist(real, fake)

    def radius(x: np.ndarray) -> np.ndarray:
        return np.sort(cdist(x, x), 1)[:, min(k, len(x) - 1)]  # column 0 is the volume itself

    precision = (between <= radius(real)[:, None]).any(0).mean()
    recall = (between <= radius(fake)[None]).any(1).mean()
    return float(precision), float(recall)


def scored(name: str, distance: Callable, real: Features, fake: Features, repeats: int = 100, seed: int = 0) -> Score:
    """Score a generated set, with the floor and an interval.

    Value and floor are means over random subsets of equal size n, half of the real volumes at most: a distance falls with
    n, so other sizes could not be compared. Subsets are drawn without repetition, since repeated volumes raise a distance.

    Args:
        name: of the score.
        distance: function of two arrays (n, d).
        real, fake: features by one extractor and one preparation, at least four real ones.
        repeats: subsets.

    Returns: a `Score`.
    Raises: DataError where the two sets were made by other extractors or preparations.
    """
    if (real.extractor, real.preparation) != (fake.extractor, fake.preparation):
        raise DataError(
            f"{name}: features of {real.extractor} ({real.preparation}) and of {fake.extractor} ({fake.preparation}) "
            "cannot be compared; extract both in the same way."
        )
    rng, n = np.random.default_rng(seed), min(len(real) // 2, len(fake))
    values, floors = [], []
    for _ in range(repeats):
        order, chosen = rng.permutation(len(real)), rng.permutation(len(fake))[:n]
        one, other = real.values[order[:n]], real.values[order[n : 2 * n]]
        values.append(distance(one, fake.values[chosen]))
        floors.append(distance(one, other))
    low, high = np.percentile(values, (2.5, 97.5))
    return Score(
        name, float(np.mean(values)), len(real), len(fake), n, float(np.mean(floors)), (low, high), real.extractor
    )
