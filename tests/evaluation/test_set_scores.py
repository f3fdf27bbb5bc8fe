"""Scores of sets against closed forms, brute force and MONAI; what equal sets and planted differences give."""

import numpy as np
import pytest
import torch

from medsynth_lib.evaluation.set_scores import (
    Features,
    frechet_distance,
    gaussian_kernel,
    median_bandwidth,
    mmd_p_value,
    polynomial_kernel,
    precision_recall,
    scored,
    squared_mmd,
)
from medsynth_lib.files import DataError


def draws(n, d=4, seed=0, shift=0.0, scale=1.0):
    return shift + scale * np.random.default_rng(seed).standard_normal((n, d))


def with_moments(x, mean, deviation):
    """The set with exactly this mean and, without correlations, these standard deviations."""
    x = x - x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return mean + x * deviation


def test_frechet_distance_of_gaussians_in_closed_form():
    """Diagonal covariances: |mu_1 - mu_2|^2 + sum of (sigma_1 - sigma_2)^2."""
    mean, sigma_1, sigma_2 = np.array([1.0, 0, -2, 0]), np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 1, 0.5])
    a, b = with_moments(draws(50), 0.0, sigma_1), with_moments(draws(60, seed=1), mean, sigma_2)
    assert frechet_distance(a, b) == pytest.approx((mean**2).sum() + ((sigma_1 - sigma_2) ** 2).sum(), rel=1e-9)


def test_frechet_distance_is_monais():
    metric = pytest.importorskip("monai.metrics").FIDMetric()
    a, b = draws(200, 8), draws(150, 8, seed=1, shift=0.3, scale=1.4)
    try:
        theirs = float(metric(torch.from_numpy(a), torch.from_numpy(b)))
    except TypeError as error:  # SciPy 1.18 took an argument away that MONAI 1.6.1 gives
        pytest.skip(str(error))
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("n, d", [(5, 40), (40, 5)])
def test_a_set_has_distance_zero_to_itself(n, d):
    """Also with fewer volumes than features, where the covariance is singular."""
    x = draws(n, d)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 1) == pytest.approx(d, rel=1e-9)


def test_mmd_is_brute_force():
    a, b, h = draws(7), draws(5, seed=1, shift=1), 1.3

    def k(x, y):
        return np.exp(-((x - y) ** 2).sum() / (2 * h**2))

    first = np.mean([k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    second = np.mean([k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    cross = np.mean([k(x, y) for x in a for y in b])
    assert squared_mmd(gaussian_kernel(h), a, b) == pytest.approx(first + second - 2 * cross, rel=1e-12)


def test_mmd_of_equal_distributions_is_zero_in_the_mean():
    values = [squared_mmd(gaussian_kernel(2.0), draws(20, seed=s), draws(20, seed=1000 + s)) for s in range(200)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert min(values) < 0 < max(values)


def test_kid_finds_a_shift():
    assert squared_mmd(polynomial_kernel, draws(200), draws(200, seed=1, shift=1)) > 1


def test_bandwidth_is_the_median_distance():
    assert median_bandwidth(np.array([[0.0], [1.0], [3.0]])) == 2  # of the distances 1, 2 and 3


def test_p_values_of_equal_and_of_shifted_sets():
    kernel = gaussian_kernel(2.0)
    assert mmd_p_value(kernel, draws(30), draws(30, seed=1, shift=2), permutations=99) == 1 / 100
    equal = [mmd_p_value(kernel, draws(12, seed=s), draws(12, seed=500 + s), permutations=49) for s in range(60)]
    assert 0.4 < np.mean(equal) < 0.6 and np.mean(np.array(equal) <= 0.1) < 0.25


def test_precision_and_recall_tell_blur_from_collapse():
    real = draws(300, 2)
    assert precision_recall(real, real) == (1, 1)
    precision, recall = precision_recall(real, 0.01 * draws(300, 2, seed=1))  # one mode in the middle
    assert precision > 0.9 and recall < 0.1
    precision, recall = precision_recall(real, 3 * draws(300, 2, seed=2))  # too wide
    assert precision < 0.6 and recall > 0.7


def test_a_score_carries_what_it_takes_to_read_it():
    real, fake = Features(draws(80), "abc", "t1 64"), Features(draws(40, seed=1, shift=1), "abc", "t1 64")
    score = scored("Frechet", frechet_distance, real, fake, repeats=50)
    assert (score.n_real, score.n_fake, score.n, score.extractor) == (80, 40, 40, "abc")
    assert score.floor < score.interval[0] < score.value < score.interval[1]
    with pytest.raises(DataError, match="abc.*xyz"):
        scored("Frechet", frechet_distance, real, Features(fake.values, "xyz", "t1 64"))


def test_a_set_from_the_same_distribution_scores_like_the_floor():
    """The mean over many pairs of sets; a value at other n than the floor's, or of repeated volumes, lies beside it."""
    differences = []
    for seed in range(30):
        real, fake = (Features(draws(60, 6, seed=10 * seed + k), "abc", "t1 64") for k in (1, 2))
        score = scored("Frechet", frechet_distance, real, fake, repeats=20)
        differences.append(score.value - score.floor)
        assert score.interval[0] < score.value < score.interval[1]
    assert abs(np.mean(differences)) < 3 * np.std(differences) / np.sqrt(len(differences))
