"""Diversity and memorisation of generated volumes: closed forms, symmetry, and a copy that must be found."""

import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs

from medsynth_lib.evaluation import generation
from medsynth_lib.evaluation.generation import (
    distances,
    generate,
    in_batches,
    ms_ssim,
    nearest_neighbours,
    pairwise_ms_ssim,
)
from medsynth_lib.settings import HAGANSettings
from medsynth_lib.training.hagan_build import build


def volumes(n, seed=0, size=32):
    return torch.rand(n, 1, size, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_ms_ssim_of_a_volume_with_itself_is_1_and_it_is_symmetric():
    a, b = volumes(2), volumes(2, seed=1)
    assert torch.allclose(ms_ssim(a, a), torch.ones(2), atol=1e-5)
    assert torch.allclose(ms_ssim(a, b), ms_ssim(b, a), atol=1e-6)
    assert (ms_ssim(a, b) < 0.5).all()


def test_ms_ssim_of_constant_volumes_is_their_luminance_term():
    """Without contrast only the coarsest scale's luminance is left: ((2 m n + c1) / (m^2 + n^2 + c1)) ^ weight."""
    a, b = (torch.full((1, 1, 32, 32, 32), v) for v in (0.0, -0.6))  # 0.5 and 0.2 of [0, 1]
    luminance = (2 * 0.5 * 0.2 + 1e-4) / (0.5**2 + 0.2**2 + 1e-4)
    weight = 0.3001 / (0.0448 + 0.2856 + 0.3001)
    assert float(ms_ssim(a, b)) == pytest.approx(luminance**weight, abs=1e-4)


def test_ms_ssim_is_the_product_over_scales():
    """Contrast terms of the finer scales, SSIM of the coarsest, each at half the resolution of the one before."""
    a = torch.nn.functional.avg_pool3d(volumes(1, size=64), 2)
    b = 0.7 * a + 0.3 * torch.nn.functional.avg_pool3d(volumes(1, 1, 64), 2)
    expected, x, y = 1.0, (a + 1) / 2, (b + 1) / 2
    for scale, weight in enumerate(np.array([0.0448, 0.2856, 0.3001]) / 0.6305):
        ssim, contrast = compute_ssim_and_cs(x, y, 3, kernel_size=[7] * 3, kernel_sigma=[1.5] * 3)
        expected *= float((ssim if scale == 2 else contrast).mean()) ** weight
        x, y = (torch.nn.functional.avg_pool3d(v, 2) for v in (x, y))
    assert float(ms_ssim(a, b)) == pytest.approx(expected, rel=1e-4)


def test_ms_ssim_needs_28_voxels():
    """The third of its scales, a quarter of the size, must hold the window of 7."""
    assert ms_ssim(volumes(1, size=28), volumes(1, 1, 28)).shape == (1,)
    with pytest.raises(ValueError, match="must be larger"):
        ms_ssim(volumes(1, size=27), volumes(1, 1, 27))


def test_collapsed_samples_are_found_and_pairs_are_distinct(monkeypatch):
    one = volumes(1)
    assert pairwise_ms_ssim(one.expand(4, 1, 32, 32, 32)) == pytest.approx(np.ones(6), abs=1e-5)
    assert pairwise_ms_ssim(volumes(4)).max() < 0.5
    numbered, seen = torch.arange(6.0)[:, None], []
    monkeypatch.setattr(generation, "ms_ssim", lambda a, b: seen.append((int(a), int(b))) or torch.zeros(1))
    assert len(pairwise_ms_ssim(numbered, pairs=40)) == 15  # 6 * 5 / 2: no more than there are
    assert len(set(seen)) == 15 and all(i < j for i, j in seen)
    seen.clear()
    assert len(pairwise_ms_ssim(numbered, pairs=5)) == 5 and len(set(seen)) == 5


def test_distance_of_a_known_shift():
    a = volumes(3)
    d = distances(torch.cat([a[:1], a[:1] + 0.3]), a)
    assert d.shape == (2, 3)
    assert float(d[0, 0]) == 0 and float(d[1, 0]) == pytest.approx(0.3, abs=1e-6)


def test_a_copy_among_many_is_at_distance_0():
    """From 26 rows on torch.cdist would take matrix products, whose rounding leaves a copy at a distance."""
    many = volumes(30, size=8)
    d = distances(many, many)
    assert (d.diagonal() == 0).all() and (d == 0).sum() == 30


def test_the_share_of_a_copy_among_three_is_0():
    """The median distance is that to the nearer of the two others; among two it would be 0, too, and the share nan."""
    train = volumes(3, size=8)
    table = nearest_neighbours(train, train)
    assert table["nearest"].tolist() == [0, 1, 2] and table["share"].tolist() == [0, 0, 0]
    assert nearest_neighbours(train[:1], train[:2])["share"].isna().all()


def test_a_memorised_volume_is_found_at_distance_0_and_a_blurred_one_is_no_copy():
    train = volumes(5)
    queries = torch.cat([train[3:4], train.mean(0, keepdim=True), volumes(1, seed=7)])
    table = nearest_neighbours(queries, iter(train))  # an iterable is enough
    assert table["nearest"][0] == 3 and table["distance"][0] == table["share"][0] == 0
    mean, new = table.loc[1], table.loc[2]
    assert mean["distance"] < new["distance"]  # the mean is nearer to all
    assert mean["share"] > 0.95 and new["share"] > 0.95  # and yet copies none


def test_distances_do_not_depend_on_the_order():
    a, b = volumes(2), volumes(4, seed=1)
    assert torch.allclose(distances(a, b), distances(b, a).T, atol=1e-6)
    assert torch.allclose(distances(a, b.flip(0)), distances(a, b).flip(1))


def test_batches_are_as_large_as_asked_and_keep_their_order():
    seen = []
    x = torch.arange(5.0)[:, None].requires_grad_()
    out = in_batches(lambda part: seen.append(len(part)) or 2 * part, x, size=2)
    assert seen == [2, 2, 1] and out.flatten().tolist() == [0, 2, 4, 6, 8] and not out.requires_grad


def test_samples_come_from_the_running_mean_where_there_is_one():
    settings = HAGANSettings(size=32, latent=4, c=2, fraction=1 / 4, average=0.9, lean=True)
    torch.manual_seed(0)
    networks, z = build(settings).networks, torch.randn(3, 4)
    assert torch.allclose(generate(networks, z), generate(networks, z, average=False), atol=1e-5)
    torch.nn.init.zeros_(networks["mean G^H"].last.weight)
    torch.nn.init.constant_(networks["mean G^H"].last.bias, 0.5)
    assert torch.allclose(generate(networks, z, batch=2), torch.full((3, 1, 32, 32, 32), 0.5).tanh())
    assert generate(networks, z, average=False).std() > 0
