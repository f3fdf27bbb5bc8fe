"""Scores and statistics: closed forms, invariances, and known pairs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import normalized_mutual_info_score

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.evaluation import image, statistics
from medsynth_lib.evaluation.distribution import spread_within
from medsynth_lib.evaluation.segmentation import contrast_share, contrast_table
from medsynth_lib.evaluation.synthesis import copy_input, mean_target, predict, score_subjects, summary

rng = np.random.default_rng(0)
TARGET = gaussian_filter(rng.random((24, 24, 24)), 1.5)
TARGET = (TARGET - TARGET.min()) / np.ptp(TARGET)
MASK = np.zeros(TARGET.shape, bool)
MASK[4:20, 4:20, 4:20] = True


def test_psnr_of_a_known_error():
    assert image.psnr(TARGET + 0.1, TARGET) == pytest.approx(20)
    assert image.psnr(TARGET, TARGET) == float("inf")


def test_mask_ignores_what_is_outside():
    spoiled = np.where(MASK, TARGET, 0.9)
    assert image.psnr(spoiled, TARGET, MASK) == float("inf") and image.psnr(spoiled, TARGET) < 20


def test_black_background_flatters_the_unmasked_score():
    truth, guess = TARGET * MASK, np.clip(TARGET + 0.1, 0, 1.1) * MASK
    assert image.psnr(guess, truth, MASK) == pytest.approx(20)
    assert image.psnr(guess, truth) == pytest.approx(20 - 10 * np.log10(MASK.mean()))


def test_ssim_is_its_definition():
    """One voxel by hand: Gaussian means, variances and covariance with sigma 1.5 cut at 5 voxels (Wang et al. 2004)."""
    guess = np.clip(TARGET + 0.05 * rng.standard_normal(TARGET.shape), 0, 1)

    def blur(a):
        return gaussian_filter(a, 1.5, radius=5)

    x, y = blur(guess), blur(TARGET)
    vx, vy, cov = blur(guess**2) - x**2, blur(TARGET**2) - y**2, blur(guess * TARGET) - x * y
    full = (2 * x * y + 1e-4) * (2 * cov + 9e-4) / ((x**2 + y**2 + 1e-4) * (vx + vy + 9e-4))
    assert image.ssim(guess, TARGET, MASK) == pytest.approx(full[MASK].mean(), abs=1e-6)
    assert image.ssim(TARGET, TARGET) == pytest.approx(1)


@pytest.fixture
def masked_pair():
    """A noisy guess, its truth and a ragged brain mask (1, x, y, z), both wrong in the background, where nobody may look."""
    draw = np.random.default_rng(1)
    mask = gaussian_filter(draw.random(TARGET.shape), 2) > 0.5
    mask &= MASK
    guess = np.clip(TARGET**1.5 + 0.05 * draw.standard_normal(TARGET.shape), 0, 1)
    guess[~MASK] = draw.random((~MASK).sum())
    return tuple(torch.from_numpy(v)[None] for v in (guess, TARGET, mask))


def test_psnr_ssim_and_nmi_are_those_of_other_libraries_on_masked_data(masked_pair):
    """A slip with the mask, the data range or the bins would give plausible numbers that no other paper could compare with."""
    guess, truth, mask = masked_pair
    p, t, m = (v[0].numpy() for v in masked_pair)
    assert 0.1 < m[MASK].mean() < 0.9
    assert image.psnr(guess, truth, mask) == pytest.approx(peak_signal_noise_ratio(t[m], p[m], data_range=1))

    # SSIM: scikit-image's map averaged in the mask, and MONAI's, which has no values within 5 voxels of the border
    options = dict(data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
    assert image.ssim(guess, truth, mask) == pytest.approx(structural_similarity(p, t, **options)[1][m].mean())
    inner = np.zeros_like(m)
    inner[5:-5, 5:-5, 5:-5] = m[5:-5, 5:-5, 5:-5]
    full, _ = compute_ssim_and_cs(
        guess[None], truth[None], 3, kernel_size=(11,) * 3, kernel_sigma=(1.5,) * 3, data_range=1
    )
    valid = full[0, 0].numpy()[inner[5:-5, 5:-5, 5:-5]]
    assert image.ssim(guess, truth, inner) == pytest.approx(valid.mean(), abs=1e-5)

    # (H(a) + H(b)) / H(a, b) from scikit-learn's 2 I / (H(a) + H(b)) of the intensities sorted into 64 bins
    bins = [np.digitize(v[m], np.linspace(v[m].min(), v[m].max(), 65)[1:-1]) for v in (p, t)]
    assert image.nmi(guess, truth, mask) == pytest.approx(2 / (2 - normalized_mutual_info_score(*bins)), abs=1e-3)


def test_scale_free_psnr_forgives_contrast_only():
    assert image.scale_free_psnr(0.4 * TARGET + 0.2, TARGET, MASK) > 100
    noisy = TARGET + 0.05 * rng.standard_normal(TARGET.shape)
    assert image.scale_free_psnr(0.4 * noisy + 0.2, TARGET, MASK) == pytest.approx(
        image.scale_free_psnr(noisy, TARGET, MASK)
    )


def test_nmi_is_2_for_any_one_to_one_map_and_1_for_noise():
    levels = rng.integers(0, 8, (32, 32, 32)) / 7
    everywhere = np.ones(levels.shape, bool)
    assert image.nmi(1 - levels, levels, everywhere) == pytest.approx(2)
    assert image.nmi(rng.integers(0, 8, levels.shape) / 7, levels, everywhere) == pytest.approx(1, abs=0.01)


def test_paper_psnr_uses_the_predictions_range():
    assert image.paper_psnr(0.5 * TARGET, TARGET) == pytest.approx(
        10 * np.log10(0.25 / np.mean((0.5 * TARGET - TARGET) ** 2))
    )


def test_scores_split_tumour_and_healthy():
    seg = np.zeros(TARGET.shape)
    seg[6:9, 6:9, 6:9] = 4
    guess = TARGET + np.where(seg > 0, 0.1, 0.01)
    out = image.scores(torch.from_numpy(guess)[None], torch.from_numpy(TARGET)[None], MASK[None], seg[None])
    assert out["tumour_psnr"] == pytest.approx(20) and out["healthy_psnr"] == pytest.approx(40)
    assert "tumour_psnr" not in image.scores(guess, TARGET, MASK, np.zeros(TARGET.shape))


# ---------------------------------------------------------------- statistics


def test_holm_of_a_textbook_example():
    """p = .01, .04, .03, .005 -> .03, .06, .06, .02 (Holm 1979)."""
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.9, 0.8]), [1, 1])


def test_rank_biserial_ends_and_middle():
    assert statistics.rank_biserial([1, 2, 3]) == 1 and statistics.rank_biserial([-1, -2]) == -1
    assert statistics.rank_biserial([1, -1, 0]) == 0
    assert statistics.rank_biserial([3, -1, 2]) == pytest.approx((3 + 2 - 1) / 6)


def test_comparison_table():
    old = rng.normal(20, 1, 16)
    table = statistics.compare({"better": (old + 0.5 + 0.1 * rng.standard_normal(16), old), "same": (old, old)})
    better, same = table.loc["better"], table.loc["same"]
    assert better["wins"] == 16 and better["low"] < 0.5 < better["high"] + 0.1 and better["effect"] == 1
    assert better["p"] == pytest.approx(2 / 2**16) and better["p_holm"] == pytest.approx(4 / 2**16)
    assert same["p"] == 1 and same["difference"] == 0
    ties = statistics.compare({"ties": (old + np.round(0.5 + 0.1 * rng.random(16), 2), old)}).iloc[0]
    assert ties["p"] == pytest.approx(2 / 2**16)  # all higher: a normal approximation would say several times as much


@pytest.mark.slow
def test_bootstrap_interval_covers_the_mean():
    """95 % intervals of the mean of 20 normal numbers hold the truth in 85 to 99 % of 200 trials."""
    hits = 0
    for trial in range(200):
        d = np.random.default_rng(trial).normal(1, 1, 20)
        row = statistics.compare({"d": (d, np.zeros(20))}, seed=trial, resamples=400).iloc[0]
        hits += row["low"] <= 1 <= row["high"]
    assert 170 <= hits <= 198


@pytest.mark.slow
def test_false_alarms_and_power_of_the_comparison():
    """200 pairs of methods on 16 subjects who differ more than methods do, without and with a difference of one sigma.

    Without: p < .05 in 5 % of them, for either sign, and never after Holm. An unpaired test would see nothing in both.
    """
    draw = np.random.default_rng(0)
    subjects = draw.normal(20, 5, (200, 16))
    noise = draw.normal(0, 1, subjects.shape)
    null = statistics.compare({k: (subjects[k] + noise[k], subjects[k]) for k in range(200)}, resamples=10)
    alarms = null[null["p"] < 0.05]
    assert 2 <= len(alarms) <= 20 and (alarms["difference"] > 0).nunique() == 2
    assert (null["p_holm"] > 0.05).all()
    real = statistics.compare({k: (subjects[k] + noise[k] + 1, subjects[k]) for k in range(200)}, resamples=10)
    assert (real["p"] < 0.05).mean() > 0.8


def test_unequal_lists_are_refused():
    with pytest.raises(ValueError, match="16 and 15|two equally long"):
        statistics.compare({"x": (np.zeros(16), np.zeros(15))})


def test_paired_t_is_the_closed_form_and_one_sided():
    """t = mean / (sd / sqrt(n)) with n - 1 degrees of freedom; 3 degrees have the distribution below (Student 1908)."""
    old, new = np.zeros(4), np.array([1.0, 2.0, 3.0, 2.0])
    difference, p = statistics.paired_t(new, old)
    t = 2 / (new.std(ddof=1) / 2)
    below = 0.5 + (t / (np.sqrt(3) * (1 + t**2 / 3)) + np.arctan(t / np.sqrt(3))) / np.pi
    assert difference == 2 and p == pytest.approx(1 - below)
    assert statistics.paired_t(new, old, "less")[1] == pytest.approx(below)
    assert np.isnan(statistics.paired_t([1.0], [0.0])[1]) and np.isnan(statistics.paired_t([1.0, 1.0], [1.0, 1.0])[1])


def test_paired_interval_leaves_out_who_lacks_a_score():
    new, old = np.array([1.0, 2.0, np.nan, 3.0, 2.0]), np.zeros(5)
    n, mean, width = statistics.paired_interval(new, old)
    assert n == 4 and mean == 2
    assert width == pytest.approx(
        3.182446 * new[[0, 1, 3, 4]].std(ddof=1) / 2
    )  # 97.5 % quantile of t, 3 degrees of freedom
    assert statistics.paired_interval(new[:4], old[:4]) == (3, 2, float("inf"))
    n, mean, width = statistics.paired_interval([np.nan], [0.0])
    assert n == 0 and np.isnan(mean) and width == float("inf")


def test_agreement_of_a_shift_is_perfect_and_of_a_constant_none():
    before, after = pd.Series([1.0, 2.0, 4.0, np.nan]), pd.Series([2.0, 3.0, 5.0, 9.0])
    row = statistics.agreement(before, after)
    assert row["measured in"] == 3 and row["mean |change|"] == 1 and row["r"] == pytest.approx(1)
    assert row["then"] - row["real"] == pytest.approx(1)
    assert np.isnan(statistics.agreement(before, pd.Series([5.0] * 4))["r"])
    assert np.isnan(statistics.agreement(before[:2], after[:2])["r"])


def test_mean_with_sd_has_the_digits_that_were_asked_for():
    text = statistics.mean_with_sd(pd.DataFrame({"psnr": [20.0, 22.0], "ssim": [0.5, 0.7]}), {"psnr": 1, "ssim": 2})
    assert text.to_dict() == {"psnr": "21.0 ± 1.4", "ssim": "0.60 ± 0.14"}
    assert statistics.mean_with_sd(pd.DataFrame({"a": [1.0, 1.0]}))["a"] == "1.000 ± 0.000"


def test_spread_within_is_half_the_mean_difference():
    assert spread_within(torch.ones(3, 1, 4, 4, 4)) == 0
    assert spread_within(torch.stack([torch.ones(2, 2), -torch.ones(2, 2)])) == 1  # the whole of [0, 1]


def test_a_faded_tumour_keeps_its_share_of_contrast():
    """Healthy brains 0 everywhere; tumours of contrast 0.4 and 0.2 in [0, 1], of which a view keeps a quarter."""
    seg = torch.zeros(2, 1, 9, 9, 9)
    seg[:, 0, 4, 4, 4] = 4
    twin = torch.zeros(2, 1, 9, 9, 9)
    patient = twin + 2 * torch.tensor([0.4, 0.2]).view(2, 1, 1, 1, 1) * (seg > 0)
    views = {"patient": patient, "faded": patient / 4, "twin": twin}
    table = contrast_table(views, seg, np.ones((2, 9, 9, 9), bool))
    assert table["patient"].tolist() == pytest.approx([0.4, 0.2])
    share = contrast_share(table, "patient", "twin")
    assert share["patient"] == pytest.approx(1) and share["faded"] == pytest.approx(0.25) and share["twin"] == 0
    seg[1] = 0
    assert len(contrast_table(views, seg, np.ones((2, 9, 9, 9), bool))) == 1  # no core, no row


# ---------------------------------------------------------------- subjects


class Volumes(list):
    """The part of PairedVolumes that scoring uses."""

    def __init__(self, subjects, offset):
        x = torch.from_numpy(TARGET).float()
        super().__init__(
            dict(x=torch.stack([x, 1 - x]), y=(x + offset + 0.01 * i)[None], mask=torch.from_numpy(MASK)[None])
            for i, _ in enumerate(subjects)
        )
        self.manifest = Manifest(pd.DataFrame(dict(subject=subjects)), Path("folder"))


def test_subjects_are_matched_by_name_not_by_position():
    inputs, truth = Volumes(["b", "a"], 0.0), Volumes(["a", "b"], 0.0)
    table = score_subjects(copy_input(0), inputs, truth)
    assert table.index.tolist() == ["b", "a"]
    assert table.loc["a", "psnr"] == float("inf") and table.loc["b", "psnr"] == pytest.approx(40, abs=0.01)
    with pytest.raises(KeyError):
        score_subjects(copy_input(0), Volumes(["c"], 0.0), truth)


def test_mean_target_and_summary():
    training = Volumes(["a", "b"], 0.0)
    make = mean_target(training)
    assert torch.allclose(make(training[0])[training[0]["mask"]], (training[0]["y"] + 0.005)[training[0]["mask"]])
    text = summary({"mean": score_subjects(make, training, training)}, ("psnr", "absent"))
    assert list(text.columns) == ["psnr"] and "±" in text.loc["mean", "psnr"]


def test_prediction_is_zero_outside_the_mask():
    from medsynth_lib.models.pix2pix import Generator

    sample = Volumes(["a"], 0.0)[0]
    out = predict(Generator(width=8), sample)
    assert out.shape == sample["y"].shape and not out[~sample["mask"]].any() and out[sample["mask"]].all()
