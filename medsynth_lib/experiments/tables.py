"""Tables as a lesson shows them: rounded, with dashes, means with standard deviations, intervals of differences."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

DASH = "–"


def dashed(table: pd.DataFrame) -> pd.DataFrame:
    """Round columns in dB to two digits, others to three, with a dash for a missing number."""
    digits = {column: 2 if "dB" in str(column) else 3 for column in table.columns}
    return table.round(digits).astype(object).where(table.notna(), DASH)


def mean_and_sd(table: pd.DataFrame, by: str, formats: Mapping[str, str]) -> pd.DataFrame:
    """Write mean ± standard deviation of each group as text.

    Args:
        table: a row a training; infinite numbers count as missing.
        by: the column whose values are the groups.
        formats: how to write a number of each column, such as "{:.2f}".

    Returns:
        A row a group, in the order of the table; a lone number has no ±, a missing one is a dash.
    """
    groups = table.replace([np.inf, -np.inf], np.nan).groupby(by, sort=False)
    mean, sd = groups[list(formats)].mean(), groups[list(formats)].std()
    text = pd.DataFrame({c: mean[c].map(f.format) + " ± " + sd[c].map(f.format) for c, f in formats.items()})
    return text.map(lambda cell: cell.removesuffix(" ± nan").replace("nan", DASH))


def paired_difference(table: pd.DataFrame, case: str, other: str, column: str) -> tuple[float, float, float, int]:
    """Compare two cases over the seeds that both have.

    Args:
        table: a row a case and seed, with the columns ``case``, ``seed`` and ``column``.
        case: the first case.
        other: the case that is subtracted.
        column: what is compared.

    Returns:
        The mean difference, the ends of its 95 % interval by Student's t, and the number of seeds.
    """
    both = table.pivot(index="seed", columns="case", values=column)[[case, other]].dropna()
    low, high = stats.ttest_rel(both[case], both[other]).confidence_interval()
    return (both[case] - both[other]).mean(), low, high, len(both)
