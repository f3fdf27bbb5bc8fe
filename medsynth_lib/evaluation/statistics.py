"""Paired comparison of two methods on the same test subjects."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats


def compare(pairs: Mapping[str, tuple[ArrayLike, ArrayLike]], seed: int = 0, resamples: int = 10_000) -> pd.DataFrame:
    """Compare pairs of methods by Wilcoxon's signed-rank test and a bootstrap interval.

    The p-values are corrected after Holm.

    Subjects are resampled, trainings are not: a small p says nothing about another training seed.

    Args:
        pairs: name -> (scores of method 1, scores of method 0), one number a subject, in the same order.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        One row a pair: n; difference, the mean of 1 minus 0; low and high, its 95 % percentile-bootstrap interval over
        subjects; wins, subjects where method 1 is higher; effect, the rank-biserial correlation; p, two-sided (exact up to
        50 subjects; a little too large where differences tie); p_holm, p after Holm (1979).

    Raises:
        ValueError: lengths differ, or there are fewer than two subjects.
    """
    table = pd.DataFrame({name: paired_row(name, *pair, seed, resamples) for name, pair in pairs.items()}).T
    table = table.astype(float).astype({"n": int, "wins": int}).rename_axis("comparison")
    table["p_holm"] = holm(table["p"].to_numpy())
    return table


def paired_row(name: str, new: ArrayLike, old: ArrayLike, seed: int, resamples: int) -> dict[str, float]:
    """Compare one pair of methods: a row of `compare`, without p_holm."""
    new, old = np.asarray(new, float), np.asarray(old, float)
    if new.shape != old.shape or len(new) < 2:
        raise ValueError(f"{name}: needs two equally long lists of at least 2 subjects, got {len(new)} and {len(old)}")
    difference = np.round(new - old, 9)  # or the last bits would decide which scores tie
    interval = stats.bootstrap(
        (difference,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    # For ties SciPy's own choice is exact up to 13 subjects, then a normal approximation; "exact" rounds W towards p = 1.
    method = "exact" if 13 < len(difference) <= 50 else "auto"
    return dict(
        n=len(difference),
        difference=difference.mean(),
        low=interval.low,
        high=interval.high,
        wins=int((difference > 0).sum()),
        effect=rank_biserial(difference),
        p=stats.wilcoxon(difference, method=method).pvalue if np.any(difference) else 1.0,
    )


def rank_biserial(difference: ArrayLike) -> float:
    """Take the matched-pairs rank-biserial correlation (Kerby 2014).

    Args:
        difference: (n) paired differences; zeros are left out.

    Returns:
        (Positive minus negative rank sum) / total rank sum: 1 where all differences are positive, -1 where all are negative.
    """
    d = np.asarray(difference, float)
    d = d[d != 0]
    if not len(d):
        return 0.0
    ranks = stats.rankdata(np.abs(d))
    return float((ranks * np.sign(d)).sum() / ranks.sum())


def holm(p: ArrayLike) -> np.ndarray:
    """Correct m p-values by Holm's step-down rule.

    The k-th smallest is multiplied by m - k + 1; the results are monotone and at most 1.
    """
    p = np.asarray(p, float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected


def paired_t(new: ArrayLike, old: ArrayLike, alternative: str = "greater") -> tuple[float, float]:
    """Compare two methods by the paired, one-sided t-test of the HA-GAN paper's Table VI.

    Args:
        new: (n) scores of one method.
        old: (n) scores of the other, of the same subjects.
        alternative: "greater" where a high score is good, "less" where a low one is.

    Returns:
        The mean of ``new`` minus ``old``, and p; nan for one subject, and where neither varies.
    """
    new, old = np.asarray(new, float), np.asarray(old, float)
    varies = len(new) > 1 and new.std() + old.std() > 0
    p = stats.ttest_rel(new, old, alternative=alternative).pvalue if varies else float("nan")
    return float((new - old).mean()), float(p)


def paired_interval(new: ArrayLike, old: ArrayLike) -> tuple[int, float, float]:
    """Compare two methods by a 95 % t-interval of their mean difference.

    Args:
        new: (n) scores of one method; nan where it has none.
        old: (n) scores of the other, of the same subjects.

    Returns:
        How many subjects both have a score of, the mean of ``new`` minus ``old``, and half the width of its interval, which
        is infinite for fewer than four subjects.
    """
    difference = np.asarray(new, float) - np.asarray(old, float)
    difference = difference[np.isfinite(difference)]
    n = len(difference)
    mean = float(difference.mean()) if n else float("nan")
    if n < 4:
        return n, mean, float("inf")
    return n, mean, float(stats.t.ppf(0.975, n - 1) * difference.std(ddof=1) / n**0.5)


def agreement(before: pd.Series, after: pd.Series) -> dict[str, float]:
    """Hold measurements after a change against those before it.

    Args:
        before: (n) measurements; nan where there was nothing to measure.
        after: (n) measurements of the same subjects.

    Returns:
        "measured in", how many have both; the means "real" and "then"; "mean |change|"; and the correlation "r", nan for
        fewer than three and where one of the two is flat.
    """
    both = after.notna() & before.notna()
    a, b = before[both], after[both]
    r = np.corrcoef(a, b)[0, 1] if both.sum() > 2 and a.std() > 0 and b.std() > 1e-6 else np.nan
    means = {"real": a.mean(), "then": b.mean(), "mean |change|": (b - a).abs().mean()}
    return {"measured in": int(both.sum())} | means | {"r": r}


def mean_with_sd(table: pd.DataFrame, digits: Mapping[str, int] | int = 3) -> pd.Series:
    """Write mean ± standard deviation of every column as text.

    Args:
        table: one row a subject.
        digits: behind the point; for each column where a mapping is given.
    """
    digits = dict.fromkeys(table, digits) if isinstance(digits, int) else digits
    return pd.Series({c: f"{table[c].mean():.{digits[c]}f} ± {table[c].std():.{digits[c]}f}" for c in table})
