"""Tables as lessons show them: digits, dashes, means with deviations, and the interval of a paired difference."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medsynth_lib.experiments.tables import dashed, mean_and_sd, paired_difference


def test_dashed_rounds_decibels_to_two_digits_and_marks_what_is_missing():
    table = pd.DataFrame({"PSNR (dB)": [20.1267, np.nan], "Dice": [0.81249, 0.5], ("gain (dB)", "Y_t"): [0.456, 1.0]})
    shown = dashed(table)
    assert shown["PSNR (dB)"].tolist() == [20.13, "–"] and shown["Dice"].tolist() == [0.812, 0.5]
    assert shown[("gain (dB)", "Y_t")].tolist() == [0.46, 1.0]
    assert np.isnan(table.loc[1, "PSNR (dB)"])  # the table itself stays


def test_mean_and_sd_keeps_the_order_of_the_groups():
    table = pd.DataFrame(dict(case=["b", "b", "a", "c", "c"], kl=[1, 3, 5, np.inf, -np.inf], psnr=[20, 21, 22, 23, 23]))
    text = mean_and_sd(table, "case", {"kl": "{:.1f}", "psnr": "{:.0f}"})
    assert text.index.tolist() == ["b", "a", "c"] and text.columns.tolist() == ["kl", "psnr"]
    assert text["kl"].tolist() == ["2.0 ± 1.4", "5.0", "–"]  # a lone number, and none at all
    assert text.loc["c", "psnr"] == "23 ± 0"


def test_paired_difference_uses_the_seeds_that_both_have():
    mine, other = {0: 20.5, 1: 21.0, 2: 20.2, 3: 99.0}, {0: 20.0, 1: 20.1, 2: 20.3}
    rows = [dict(case=c, seed=s, psnr=v) for c, values in (("mine", mine), ("all", other)) for s, v in values.items()]
    mean, low, high, n = paired_difference(pd.DataFrame(rows), "mine", "all", "psnr")
    gains = np.array([mine[s] - other[s] for s in other])
    half = stats.t.ppf(0.975, 2) * gains.std(ddof=1) / 3**0.5
    assert n == 3 and mean == pytest.approx(gains.mean())
    assert (low, high) == pytest.approx((gains.mean() - half, gains.mean() + half))
