"""Paired comparison of two methods on the same test subjects."""

import numpy as np
import pandas as pd
from scipy import stats


def compare(pairs, seed=0, resamples=10_000):
    """Table of paired differences with Wilcoxon p (Holm-corrected over the rows), effect size and bootstrap interval.

    ``pairs``: name -> (scores of method 1, scores of method 0), one entry a subject, in the same order. Columns: n, mean
    difference (1 minus 0), 95 % percentile-bootstrap interval of that mean over subjects, number of subjects where method 1
    is higher, rank-biserial correlation (-1 to 1), p of the two-sided Wilcoxon signed-rank test (exact up
    to 50 subjects; a little too large where differences tie), p after Holm (1979).
    Subjects are resampled, trainings are not: a small p says nothing about another training seed.
    Raises ValueError where lengths differ or fewer than two subjects are given.
    """
    rows = []
    for name, (new, old) in pairs.items():
        new, old = np.asarray(new, float), np.asarray(old, float)
        if new.shape != old.shape or len(new) < 2:
            raise ValueError(
                f"{name}: needs two equally long lists of at least 2 subjects, got {len(new)} and {len(old)}"
            )
        difference = np.round(new - old, 9)  # or the last bits would decide which scores tie
        interval = stats.bootstrap(
            (difference,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed)
        ).confidence_interval
        # For ties SciPy's own choice is exact up to 13 subjects, then a normal approximation; "exact" rounds W towards p = 1.
        method = "exact" if 13 < len(difference) <= 50 else "auto"
        p = stats.wilcoxon(difference, method=method).pvalue if np.any(difference) else 1.0
        rows.append(
            dict(
                comparison=name,
                n=len(difference),
                difference=difference.mean(),
                low=interval.low,
                high=interval.high,
                wins=int((difference > 0).sum()),
                effect=rank_biserial(difference),
                p=p,
            )
        )
    table = pd.DataFrame(rows).set_index("comparison")
    table["p_holm"] = holm(table["p"].to_numpy())
    return table


def rank_biserial(difference):
    """Matched-pairs rank-biserial correlation: (positive - negative rank sum) / total rank sum, zeros left out (Kerby 2014)."""
    d = np.asarray(difference, float)
    d = d[d != 0]
    if not len(d):
        return 0.0
    ranks = stats.rankdata(np.abs(d))
    return float((ranks * np.sign(d)).sum() / ranks.sum())


def holm(p):
    """Holm's step-down correction: the k-th smallest of m p-values times m - k + 1, made monotone, at most 1."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return corrected
