"""Slice-VAE: parameter counts, slicing, losses against torch's distributions, what slices know of each other, the slice model."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch.distributions import Normal, kl_divergence

from medsynth_lib.evaluation.distribution import neighbour_correlation, sliced_wasserstein
from medsynth_lib.evaluation.slice_model import SliceModel
from medsynth_lib.models.divergence import DIVERGENCES, kl, reverse_kl, symmetric_kl, wasserstein2
from medsynth_lib.models.svae import VAE, Conv3d, Decoder, Encoder, widths
from medsynth_lib.settings import SliceVAESettings, notebooks_folder
from medsynth_lib.training.svae import (
    SliceVAE,
    choose,
    deform,
    gaussian_kl,
    printed_kl,
    slices_to_volume,
    to_cube,
    volume_to_slices,
)

SETTINGS = SliceVAESettings(size=16, width=16, learning_rate=1e-3, constant_until=0.5, decay_until=1.0)


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    "size, dims, expected",
    [
        (256, 2, 1_726_296),
        (256, 3, 5_167_392),
        (128, 2, 1_726_896),
        (128, 3, 5_169_216),
        (64, 2, 1_729_248),
        (64, 3, 5_176_320),
    ],
)
def test_encoder_parameters(size, dims, expected):
    """Published models at 256 (the paper: 1.73 M and 5.17 M), the depth rule below."""
    assert count(Encoder(size, dims)) == expected == count(Encoder(size, dims, norm="slice"))


def test_decoder_parameters():
    assert count(Decoder(256, 2)) == 1_576_165


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("dims", [2, 3])
def test_latent_is_256_by_2_at_any_power_of_two(size, dims):
    with torch.device("meta"):
        mean, log_variance = Encoder(size, dims)(torch.empty(2, 1, *(size,) * dims))
        assert mean.shape == log_variance.shape == (2, 256, *(2,) * dims)
        assert Decoder(size, dims)(mean).shape == (2, 1, *(size,) * dims)


def test_other_sizes_are_refused():
    for size in (4, 48, 512):
        with pytest.raises(ValueError, match=f"{size} is not a power of two"):
            widths(size)
    with pytest.raises(ValueError, match="width 30"):
        widths(64, 30)
    with pytest.raises(ValueError, match="norm 'layer'"):
        VAE(16, norm="layer")


@pytest.mark.parametrize(("n", "width"), [(1, 8), (2, 8), (1, 40)])
def test_a_volume_that_is_alone_is_convolved_as_by_torch(n, width):
    torch.manual_seed(0)
    ours, theirs = Conv3d(width, 4, 3, padding=1), torch.nn.Conv3d(width, 4, 3, padding=1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(n, width, 24, 24, 6)  # 40 channels are above the size from which torch is as fast
    found, wanted = ours(x), theirs(x)
    assert found.shape == wanted.shape and found.is_contiguous() and torch.allclose(found, wanted, atol=1e-5)
    for y in (found, wanted):
        y.square().sum().backward()
    assert torch.allclose(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-3)


def test_mean_and_code_may_be_negative():
    """No activation after the heads: a code that could not be negative would not be Gaussian."""
    torch.manual_seed(0)
    mean, log_variance = Encoder(16, width=16)(torch.rand(8, 1, 16, 16))
    assert (mean < 0).any() and (log_variance < 0).any()
    assert (Decoder(16, width=16)(mean) < 0).any()


@pytest.mark.parametrize("plane, axis", [("sagittal", 0), ("coronal", 1), ("axial", 2)])
def test_slices_are_slices(plane, axis):
    """Every slice is a plane of the volume, in order, and the way back is exact; a reshape would cut planes into pieces."""
    cube = torch.rand(4, 4, 4)
    slices = volume_to_slices(cube, plane)
    assert slices.shape == (4, 1, 4, 4)
    assert all(torch.equal(slices[k, 0], cube.select(axis, k)) for k in range(4))
    assert torch.equal(slices_to_volume(slices, plane), cube)
    assert torch.equal(cube.reshape(4, 1, 4, 4), slices) == (axis == 0)


def test_padding_is_centred_and_loses_nothing():
    volume = torch.rand(1, 6, 8, 5)
    cube = to_cube(volume, 8)
    assert cube.shape == (1, 8, 8, 8) and torch.equal(cube[:, 1:7, :, 1:6], volume)
    assert torch.count_nonzero(cube) == torch.count_nonzero(volume)


def test_choosing_slices():
    slices = torch.arange(8)
    assert choose(slices, "first 2").tolist() == [0, 1] and choose(slices, "spread 2").tolist() == [0, 4]
    assert torch.equal(choose(slices, "all"), slices) and torch.equal(choose(slices, "spread 8"), slices)
    slices = torch.zeros(8, 1, 2, 2)
    slices[3:6] = torch.rand(3, 1, 2, 2)
    drawn = choose(slices, "random 2")
    assert drawn.shape == (2, 1, 2, 2) and drawn.flatten(1).any(1).all() and len(choose(slices, "random 8")) == 3
    for wrong in ("first 9", "last 2", "first", "spread 0", "first x"):
        with pytest.raises(ValueError, match="slices"):
            choose(slices, wrong)


def gaussians(seed=0, shape=(3, 5)):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator, dtype=torch.float64), torch.randn(shape, generator=generator).double())
            for _ in range(2)]  # fmt: skip


def normal(p):
    return Normal(p[0], (p[1] / 2).exp())


def test_divergences_against_torch():
    p, q = gaussians()
    assert torch.allclose(kl(p, q), kl_divergence(normal(p), normal(q)))
    assert torch.allclose(reverse_kl(p, q), kl_divergence(normal(q), normal(p)))
    both = kl_divergence(normal(p), normal(q)), kl_divergence(normal(q), normal(p))
    assert torch.allclose(symmetric_kl(p, q), sum(both) / 2)
    standard = Normal(torch.zeros_like(p[0]), 1.0)
    assert torch.allclose(gaussian_kl(*p), kl_divergence(normal(p), standard))
    assert torch.allclose(printed_kl(*p), kl_divergence(standard, normal(p)))


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "symmetric_kl"])
def test_kl_against_monte_carlo(name):
    """The mean of log p - log q under p, without any library's closed form; within five standard errors."""
    p, q = gaussians(seed=1, shape=(4,))
    generator = torch.Generator().manual_seed(2)

    def log_ratio(a, b):  # log a - log b at draws from a; the shared constant cancels
        z = torch.randn(200_000, 4, generator=generator, dtype=torch.float64)
        x = a[0] + (a[1] / 2).exp() * z
        return (((x - b[0]).square() / b[1].exp() + b[1]) - (z.square() + a[1])) / 2

    draws = {"kl": log_ratio(p, q), "reverse_kl": log_ratio(q, p)}
    draws["symmetric_kl"] = (draws["kl"] + draws["reverse_kl"]) / 2
    error = draws[name].std(0) / len(draws[name]) ** 0.5
    assert ((draws[name].mean(0) - DIVERGENCES[name](p, q)).abs() < 5 * error).all()
    assert (error < 0.05 * DIVERGENCES[name](p, q)).all()  # else the test could not tell


def test_wasserstein_against_monte_carlo():
    """Sorted draws of each are the optimal coupling in one dimension."""
    p, q = gaussians(seed=1, shape=(4,))
    generator = torch.Generator().manual_seed(2)
    draws = [
        g[0] + (g[1] / 2).exp() * torch.randn(200_000, 4, generator=generator, dtype=torch.float64) for g in (p, q)
    ]
    one, two = (d.sort(0).values for d in draws)
    assert torch.allclose((one - two).square().mean(0), wasserstein2(p, q), rtol=0.03, atol=1e-3)


def test_wasserstein_is_that_of_the_optimal_coupling():
    """Two Gaussians coupled by one standard normal (their quantiles), in one dimension."""
    p, q = gaussians(shape=(1,))
    levels = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    quantiles = [normal(g).icdf(levels) for g in (p, q)]
    assert torch.isclose((quantiles[0] - quantiles[1]).square().mean(), wasserstein2(p, q)[0], rtol=0.02)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_zero_only_at_equality(name):
    p, q = gaussians()
    assert torch.allclose(DIVERGENCES[name](p, p), torch.zeros_like(p[0]), atol=1e-12)
    assert (DIVERGENCES[name](p, q) > 0).all()


def test_each_misprint_alone_and_both():
    """Same weights, same draws: "reversed" changes only the KL, "unsquared" only the error, "printed" both."""
    torch.manual_seed(0)
    x = torch.rand(4, 1, 16, 16)
    losses = {}
    for loss, weight in itertools.product(("elbo", "reversed", "unsquared", "printed"), (0.0, 0.5)):
        torch.manual_seed(1)
        algorithm = SliceVAE(replace(SETTINGS, loss=loss, kl_weight=weight))
        torch.manual_seed(2)
        losses[loss, weight] = algorithm.losses(x)
    elbo = losses["elbo", 0.5]
    error = {loss: losses[loss, 0.0]["loss"] for loss in ("elbo", "reversed", "unsquared", "printed")}
    kls = {loss: losses[loss, 0.5]["kl"] for loss in error}
    for loss in error:
        assert torch.isclose(losses[loss, 0.5]["loss"], error[loss] + 0.5 * kls[loss])
        assert torch.isclose(losses[loss, 0.5]["sse"], elbo["sse"])
    assert error["elbo"] == error["reversed"] == elbo["sse"] and error["unsquared"] == error["printed"]
    assert error["printed"] < elbo["sse"].sqrt()  # the mean of roots lies below the root of the mean
    assert kls["elbo"] == kls["unsquared"] and kls["reversed"] == kls["printed"]
    torch.manual_seed(2)
    _, mean, log_variance = algorithm.networks["vae"](x)
    assert torch.isclose(kls["elbo"], gaussian_kl(mean, log_variance).sum() / 4)
    assert torch.isclose(kls["reversed"], printed_kl(mean, log_variance).sum() / 4)
    with pytest.raises(ValueError, match="loss 'elbow'"):
        SliceVAE(replace(SETTINGS, loss="elbow"))


@pytest.mark.parametrize("norm", ["batch", "slice"])
def test_shuffling_slices_changes_nothing(norm):
    """The order of a batch never enters: shuffled slices give shuffled codes, so no loss can learn from neighbourhood."""
    torch.manual_seed(0)
    encoder, x, order = Encoder(16, norm=norm, width=16).double(), torch.rand(8, 1, 16, 16).double(), torch.randperm(8)
    for part, shuffled in zip(encoder(x), encoder(x[order]), strict=True):
        assert torch.allclose(part[order], shuffled, atol=1e-10)


def test_slices_meet_only_in_batch_norm():
    """Change one slice: with batch norm in training every code changes, per slice or in evaluation only its own."""
    torch.manual_seed(0)
    x = torch.rand(8, 1, 16, 16)
    other = x.clone()
    other[0] += 1
    for norm, training, meet in (("batch", True, True), ("batch", False, False), ("slice", True, False)):
        encoder = Encoder(16, norm=norm, width=16).train(training)
        with torch.no_grad():
            change = (encoder(x)[0] - encoder(other)[0]).abs().flatten(1).amax(1)
        assert change[0] > 1e-3 and bool((change[1:] > 1e-4).all()) == meet, (norm, training)
        assert meet or (change[1:] < 1e-5).all()


@pytest.mark.slow
def test_it_learns_a_tiny_volume():
    """200 steps on one volume of blobs: the error falls below a fifth of the error of a blank image."""
    torch.manual_seed(0)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 16)] * 3, indexing="ij"))
    y = (grid.square().sum(0) < 0.5).float()[None, None] * (0.5 + 0.5 * grid[0].sign() * grid[1].sign())
    algorithm = SliceVAE(replace(SETTINGS, learning_rate=3e-3))
    for _ in range(200):
        losses = algorithm.step({"y": y})
    assert losses["sse"] < y.square().sum() / 16 / 5
    assert np.isfinite(float(losses["kl"]))


# -- sampling volumes ----------------------------------------------------------------------------------------------------


def test_slice_model_reproduces_mean_and_covariance_across_slices():
    """With many volumes there is next to no shrinkage: samples have the planted covariance of every coordinate."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 6, 6, generator=generator)  # (coordinates, slices, slices)
    codes = torch.einsum("lst,nlt->nls", mixing, torch.randn(4000, 4, 6, generator=generator)) + 3
    model = SliceModel(codes.permute(0, 2, 1).reshape(4000, 6, 1, 2, 2))
    drawn = model.sample(20_000, generator)
    assert drawn.shape == (20_000, 6, 1, 2, 2)
    drawn = drawn.flatten(2).permute(2, 0, 1)
    for values, mix in zip(drawn, mixing, strict=True):
        truth = mix @ mix.T
        assert torch.allclose(values.mean(0), torch.tensor(3.0), atol=0.15)
        assert torch.allclose(torch.cov(values.T), truth, atol=0.06 * truth.diagonal().max())


def test_few_volumes_are_shrunk_and_the_variance_is_kept():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(5, 16, 1, 2, 2, generator=generator)
    model = SliceModel(codes)
    assert (model.shrinkage > 0.1).all() and (model.shrinkage <= 1).all()
    drawn = model.sample(20_000, generator)
    total = (codes - codes.mean(0)).square().mean(0)
    assert drawn.var(0).mean() == pytest.approx(float(total.mean()), rel=0.05)
    with pytest.raises(ValueError, match="at least two"):
        SliceModel(codes[:1])


def test_a_slice_model_of_two_volumes_has_shares_of_shrinkage():
    """Of two volumes the estimate of the share is an integer: it must not become the type of all of them."""
    model = SliceModel(torch.randn(2, 6, 4, 2, 2, generator=torch.Generator().manual_seed(0)))
    assert model.shrinkage.is_floating_point() and 0 <= float(model.shrinkage.mean()) <= 1


def test_distances_tell_equal_from_different_and_shuffled_from_whole():
    grid = torch.linspace(-1, 1, 16)
    balls = torch.stack([(torch.stack(torch.meshgrid(grid, grid, grid, indexing="ij")).square().sum(0) < r).float()
                         * (1 + 0.3 * grid[:, None, None]) for r in (0.5, 0.6, 0.7)])  # fmt: skip
    noisy = balls + 0.05 * torch.rand(balls.shape, generator=torch.Generator().manual_seed(0)) * (balls > 0)
    shuffled = noisy[..., torch.randperm(16, generator=torch.Generator().manual_seed(1))]
    assert neighbour_correlation(noisy) > neighbour_correlation(shuffled) + 0.1
    assert np.isnan(neighbour_correlation(torch.zeros(1, 8, 8, 8)))
    assert (
        sliced_wasserstein(balls, balls)
        == 0
        < sliced_wasserstein(balls, balls * 0.9)
        < sliced_wasserstein(balls, balls * 0.5)
    )


def test_a_deformed_head_is_another_one_of_the_same_brightness():
    """Its voxels move, its histogram hardly; the same generator repeats it; blank slices stay blank and 0 stays 0."""
    x = torch.zeros(2, 1, 24, 24, 6)
    x[:, :, 6:18, 6:18, 1:5] = 0.8
    one, again, other = (deform(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other) and one.shape == x.shape
    assert not torch.equal(one[0], one[1]) and 0 <= one.min() and one.max() <= 1
    assert not one[..., [0, 5]].any() and one[..., 2].any()
    inside = one[:, :, 9:15, 9:15, 1:5]
    assert torch.allclose(inside, torch.full_like(inside, 0.8), atol=0.01)
    share = one.gt(0.4).float().mean() / x.gt(0.4).float().mean()
    assert 0.75 < share < 1.33 and (one - x).abs().max() > 0.2


# -- what is trained and shipped ------------------------------------------------------------------------------------------


SHIPPED = sorted((notebooks_folder() / "pretrained").glob("svae*"))


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_shipped_weights_are_small_and_good(folder):
    """At most 16 MB each; the s-VAE that lessons rest on reconstructs held-out T1 at 20 dB inside the brain (the bar).

    Its 3D twin and its per-slice variant are shorter trainings for comparison: they are shown with the PSNR they reach.
    """
    assert (folder / "weights.safetensors").stat().st_size <= 16e6
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    psnr = -10 * np.log10(pd.read_csv(folder / "history.csv")["tune_brain_mse"].iloc[-1])
    assert np.isfinite(psnr)
    if recipe["dims"] == 2 and recipe["norm"] == "batch":
        assert psnr >= 20  # lesson 03: below it the lesson would be about a weak encoder
