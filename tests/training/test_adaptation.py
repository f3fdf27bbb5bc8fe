"""Adaptation: what one step does, the aggregate prior, physics of a protocol, appearance transforms, segmentation scores."""

import copy

import numpy as np
import pytest
import torch

from medsynth_lib.data.preparation import appearance
from medsynth_lib.data.simulation import protocol
from medsynth_lib.data.simulation.physics import tissue_signals
from medsynth_lib.data.simulation.scanner import SITES
from medsynth_lib.evaluation.segmentation import dice, dice_scores, lesion_contrast
from medsynth_lib.models.divergence import kl
from medsynth_lib.models.pix2pix import Generator
from medsynth_lib.models.svae import Encoder
from medsynth_lib.training.adaptation import Adaptation, SourceAndTarget, aggregate, norm, posterior, source_posteriors
from medsynth_lib.training.pix2pix import Pix2Pix, l1_loss
from medsynth_lib.training.segmentation import INPUTS, regions

RECIPE = dict(profile="fixed", divergence="kl", rho=0.0, prior="bank", learning_rate=1e-3, constant_until=0.0,
              decay_until=1.0, final_learning_rate=1e-4)  # fmt: skip
SVAE = dict(size=16, dims=2, plane="axial", slices="all", norm="batch", width=16)


@pytest.fixture
def parts():
    """Generator, encoder, source T1 (3, 1, 16, 16, 8) and a batch of one."""
    torch.manual_seed(0)
    generator, encoder = Generator(width=4).to(memory_format=torch.channels_last_3d), Encoder(16, width=16)
    real = torch.rand(3, 1, 16, 16, 8)
    batch = dict(x=torch.rand(1, 2, 16, 16, 8), y=real[:1], mask=torch.ones(1, 1, 16, 16, 8, dtype=torch.bool),
                 target_x=torch.rand(1, 2, 16, 16, 8), target_mask=torch.ones(1, 1, 16, 16, 8, dtype=torch.bool),
                 index=torch.tensor([1]))  # fmt: skip
    encoder.train()
    for _ in range(20):  # running statistics as after a training
        posterior(encoder, real, SVAE)
    return generator, encoder.eval(), real, batch


def adaptation(parts, **changes):
    generator, encoder, real, _ = parts
    encoder = copy.deepcopy(encoder).train(changes.get("profile") == "paper")
    return Adaptation(RECIPE | changes, copy.deepcopy(generator), encoder, SVAE, source_posteriors(encoder, real, SVAE))


def weights(algorithm):
    return torch.cat([p.detach().flatten() for p in algorithm.networks["generator"].parameters()])


def test_rho_zero_is_continued_training_to_the_bit(parts):
    """The control of every row: with rho 0 nothing of encoder or target enters."""
    generator, _, _, batch = parts
    adapted = adaptation(parts)
    plain = Pix2Pix(dict(width=4, loss="l1", learning_rate=1e-3))
    plain.networks["generator"].load_state_dict(generator.state_dict())
    for _ in range(3):
        adapted.step(batch)
        plain.step(batch)
    assert torch.equal(weights(adapted), weights(plain))


def test_rho_zero_in_paper_is_a_second_update_on_nothing(parts):
    """Its control: the latent loss times 0 on the same Adam, without encoder and target; and not continued training."""
    generator, _, _, batch = parts
    control = Adaptation(RECIPE | dict(profile="paper"), copy.deepcopy(generator))
    twin, continued = copy.deepcopy(generator), adaptation(parts)
    adam = torch.optim.Adam(twin.parameters(), 1e-3, (0.5, 0.999))
    for _ in range(3):
        assert set(control.step(batch)) == {"l1"}
        continued.step(batch)
        for weight in (1, 0):
            adam.zero_grad()
            (weight * l1_loss(twin(batch["x"]), batch["y"])).backward()
            adam.step()
    assert torch.equal(weights(control), torch.cat([p.detach().flatten() for p in twin.parameters()]))
    assert not torch.allclose(weights(control), weights(continued), atol=1e-4)


def test_the_latent_gradient_has_rho_times_the_supervised_norm(parts):
    generator, _, _, batch = parts
    algorithm = adaptation(parts, rho=0.3)
    supervised = torch.autograd.grad(l1_loss(generator(batch["x"]), batch["y"]), list(generator.parameters()))
    algorithm.step(batch)
    both = [p.grad for p in algorithm.networks["generator"].parameters()]
    latent = norm([b - s for b, s in zip(both, supervised, strict=True)])
    assert torch.isclose(latent, 0.3 * norm(supervised), rtol=1e-4)


def test_a_target_without_brain_leaves_continued_training(parts):
    """An empty mask gives a latent gradient of exactly zero; scaled to the supervised norm, it would divide by zero."""
    batch = parts[-1] | dict(target_mask=torch.zeros_like(parts[-1]["target_mask"]))
    empty, plain = adaptation(parts, rho=0.3), adaptation(parts)
    for algorithm in (empty, plain):
        algorithm.step(batch)
    assert weights(empty).isfinite().all() and torch.equal(weights(empty), weights(plain))


def test_profile_paper_sums_the_largest_55_percent(parts):
    """By brute force over the elements of KL: another share, or the smallest, would be another loss than the authors' code."""
    _, _, real, batch = parts
    algorithm = adaptation(parts, profile="paper", prior="pair")
    p = posterior(copy.deepcopy(algorithm.encoder), real[1:2], SVAE)
    q = posterior(copy.deepcopy(algorithm.encoder), algorithm.networks["generator"](batch["target_x"]), SVAE)
    mean_p, log_p, mean_q, log_q = (v.flatten().tolist() for v in (*p, *q))
    elements = [
        0.5 * (lq - lp + (np.exp(lp) + (mp - mq) ** 2) / np.exp(lq) - 1)
        for mp, lp, mq, lq in zip(mean_p, log_p, mean_q, log_q, strict=True)
    ]
    assert len(elements) == 16 * 16 * 2 * 2  # slices, width, and 2 x 2 positions
    largest = sorted(elements, reverse=True)[:563]  # of 1024: 55 % is 563.2
    assert algorithm.latent(batch).item() == pytest.approx(sum(largest), rel=1e-4)
    assert sum(largest) < 0.9999 * sum(elements) - 1e-3  # what is left out would show


def test_volumes_follow_the_encoder_to_its_device(parts):
    """Volumes come from the CPU while the encoder is on a GPU, for which the device 'meta' stands in here."""
    _, encoder, real, _ = parts
    mean, log_variance = posterior(copy.deepcopy(encoder).to(torch.device("meta")), real, SVAE)
    assert mean.device.type == log_variance.device.type == "meta" and len(mean) == len(real)


@pytest.mark.parametrize("profile, frozen", [("fixed", True), ("paper", False)])
def test_the_encoder_is_frozen_to_the_bit_only_in_fixed(parts, profile, frozen):
    """In the published code train-mode batch norm moves the 'frozen' encoder's running statistics (specs: fault 11)."""
    algorithm = adaptation(parts, profile=profile, rho=0.3, prior="pair")
    before = copy.deepcopy(algorithm.encoder.state_dict())
    algorithm.step(parts[-1])
    after = algorithm.encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k, _ in algorithm.encoder.named_parameters())
    assert all(torch.equal(before[k], after[k]) for k in before) == frozen


def test_pair_and_bank_priors(parts):
    """A pair's prior is the one source volume's; with a bank of one volume the two agree."""
    _, encoder, real, batch = parts
    pair, bank = adaptation(parts, rho=1.0, prior="pair"), adaptation(parts, rho=1.0)
    q = posterior(encoder, pair.networks["generator"](batch["target_x"]), SVAE)
    p = posterior(encoder, real[1:2], SVAE)
    assert torch.isclose(pair.latent(batch), kl(p, q).mean(), rtol=1e-4)
    assert not torch.isclose(pair.latent(batch), bank.latent(batch), rtol=1e-3)
    one = source_posteriors(encoder, real[1:2], SVAE)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(aggregate(*one), one, strict=True))


def test_aggregate_has_the_moments_of_the_mixture():
    """Sample every volume's Gaussian equally often: mean and variance of all draws."""
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(5, 1, 3, generator=generator) for _ in range(2))
    draws = mean + (log_variance / 2).exp() * torch.randn(200_000, 5, 1, 3, generator=generator)
    (m,), (lv,) = aggregate(mean, log_variance)
    assert torch.allclose(draws.mean((0, 1)), m, atol=0.01)
    assert torch.allclose(draws.flatten(0, 1).var(0), lv.exp(), rtol=0.01)


def test_source_and_target_never_read_the_targets_t1():
    source = [dict(x=i, y=10 + i, mask=True) for i in range(3)]
    target = [dict(x=100 + i, mask=True) for i in range(2)]  # no "y" to read
    every = SourceAndTarget(source, target)
    assert {(s["x"], s["target_x"]) for s in every} == {(i, 100 + j) for i in range(3) for j in range(2)}
    paired = SourceAndTarget(source, target, paired=True)
    assert [(s["x"], s["target_x"]) for s in paired] == [(0, 100), (1, 101)]
    assert len(SourceAndTarget(source, target, limit=1)) == 3


# -- physics of a protocol -----------------------------------------------------------------------------------------------


def test_levels_are_the_signal_equations():
    for site in SITES.values():
        signal = np.abs(tissue_signals(site.sequences["t1"], site.field))
        expected = signal[[3, 1, 0]] / signal[0]  # CSF, grey, white matter
        assert np.allclose(protocol.levels(protocol.literature(), site.sequences["t1"], site.field), expected)


def test_the_fit_keeps_a_literature_that_agrees_and_mends_one_that_does_not():
    """Observations made with the true values: a prior 15 % off in grey matter's T1 comes back by more than half."""
    truth, (a, b) = protocol.literature(), (SITES["A"], SITES["B"])
    seen = [
        (site.sequences[m], site.field, protocol.levels(truth, site.sequences[m], site.field)[1])
        for site, m in ((a, "t1"), (a, "t2"), (a, "flair"), (b, "t2"), (b, "flair"))
    ]
    same = protocol.fitted_relaxation(truth, seen)
    assert all(np.allclose(same[k], truth[k], atol=1e-6) for k in truth)
    wrong = {k: v.copy() for k, v in truth.items()}
    wrong["t1", 1.5][1] += 0.15
    goal, off, mended = (
        protocol.levels(r, b.sequences["t1"], b.field)[1]
        for r in (truth, wrong, protocol.fitted_relaxation(wrong, seen))
    )
    assert abs(mended - goal) < abs(off - goal) / 2


def test_curve_between_equal_sites_changes_nothing():
    x, y = protocol.protocol_curve(SITES["A"], SITES["A"], protocol.literature(), protocol.literature())
    assert np.allclose(x, y)
    t1 = np.random.default_rng(0).uniform(1, 1000, (8, 8, 8)).astype(np.float32)
    t1[0] = 0
    mapped = protocol.map_t1(t1, (x, y))
    assert np.allclose(mapped * protocol.white_level(t1), t1, rtol=1e-5) and (mapped[0] == 0).all()


def test_white_level_is_the_brightest_peak_in_any_unit():
    rng = np.random.default_rng(0)
    t1 = np.concatenate([rng.normal(300, 60, 3000), rng.normal(600, 40, 9000), rng.normal(1000, 50, 8000)]).reshape(
        20, 20, 50
    )
    assert protocol.white_level(t1) == pytest.approx(1000, rel=0.03)
    assert protocol.white_level(7 * t1) == pytest.approx(7 * protocol.white_level(t1))


# -- appearance ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def volume():
    rng = np.random.default_rng(0)
    mask = torch.zeros(1, 12, 12, 12, dtype=torch.bool)
    mask[:, 2:-2, 2:-2, 2:-2] = True
    return torch.from_numpy(rng.random((2, 12, 12, 12))).float() * mask, mask


def test_histogram_matching_reaches_the_wanted_quantiles(volume):
    v, mask = volume
    wanted = appearance.quantiles([v**2], [mask])
    matched = appearance.apply_curve(v, mask, appearance.quantiles([v], [mask]), wanted)
    assert torch.allclose(matched, v**2, atol=0.01) and not matched[:, ~mask[0]].any()
    own = appearance.quantiles([v], [mask], appearance.NYUL_LEVELS)
    assert torch.allclose(appearance.match_volume(v, mask, own), v, atol=1e-6)


def test_fourier_swap_with_itself_is_the_identity_and_takes_the_others_mean(volume):
    v, mask = volume
    assert torch.allclose(appearance.fourier_swap(v, v, mask), v, atol=1e-5)
    bright = 0.6 + 0.2 * v  # stays inside [0, 1]
    dim = appearance.fourier_swap(bright, 0.5 * bright, torch.ones_like(mask), beta=0.0)  # the zero frequency alone
    assert torch.allclose(dim, bright - 0.5 * bright.mean((1, 2, 3), keepdim=True), atol=1e-5)


def test_thicker_slices_blur_along_z_only_and_noise_is_seen(volume):
    v, mask = volume
    assert torch.equal(appearance.thicker_slices(v, mask, 5, 3, 3.0), v)
    flat = torch.where(mask, torch.tensor(0.7), torch.tensor(0.0)).expand(2, -1, -1, -1)
    assert torch.allclose(
        appearance.thicker_slices(flat, mask, 3, 5, 3.0), flat, atol=1e-6
    )  # no darkening at the border
    blurred = appearance.thicker_slices(v, mask, 3, 9, 3.0)
    assert blurred[:, mask[0]].std() < 0.8 * v[:, mask[0]].std()
    noisy = flat + 0.05 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    assert appearance.noise_level(noisy, mask) == pytest.approx(0.05, rel=0.2)


def test_gamma_and_bias_keep_background_and_range(volume):
    v, mask = volume
    out = appearance.gamma_and_bias(v, mask, np.random.default_rng(0))
    assert torch.equal(out[:, ~mask[0]], v[:, ~mask[0]]) and 0 <= out.min() and out.max() <= 1
    assert (out - v).abs().max() > 0.02


# -- segmentation --------------------------------------------------------------------------------------------------------


def test_regions_dice_and_lesion_contrast():
    seg = torch.zeros(1, 1, 9, 9, 9)
    seg[..., 2:7, 2:7, 2:7], seg[..., 3:6, 3:6, 3:6], seg[..., 4, 4, 4] = 2, 1, 4
    wt, tc, et = regions(seg)[0]
    assert (wt.sum(), tc.sum(), et.sum()) == (125, 27, 1)
    assert (
        dice(wt > 0, wt > 0) == 1
        and dice(wt > 0, tc > 0) == pytest.approx(2 * 27 / 152)
        and np.isnan(dice(wt < 0, wt < 0))
    )
    image = torch.where(seg > 0, 0.2, 0.6) - 0.1 * (seg == 1)
    mask = torch.ones(1, 9, 9, 9, dtype=torch.bool)
    assert lesion_contrast(image, seg, mask) == pytest.approx(0.2 - 0.1 * 26 / 27 - 0.6, abs=1e-5)


def test_false_lesions_by_hand():
    """Eight true voxels; found are four of them and two in healthy tissue: ratio 6 / 8, false 2 / 8, Dice 2 * 4 / (8 + 6)."""
    seg = torch.zeros(1, 6, 6, 6)
    seg[0, :2, :2, :2] = 2
    t1 = torch.zeros(1, 6, 6, 6)
    t1[0, 1:2, :2, :2] = t1[0, 5, 5, 4:6] = 1

    class BrightT1(torch.nn.Module):
        """Calls the whole tumour what is bright in T1, and nothing core or enhancing."""

        def __init__(self):
            super().__init__()
            self.threshold = torch.nn.Parameter(torch.tensor(0.5))

        def forward(self, x):
            wt = x[:, INPUTS.index("t1")] - self.threshold
            return torch.stack([wt, -torch.ones_like(wt), -torch.ones_like(wt)], 1)

    sample = dict(x=torch.full((4, 6, 6, 6), 0.9), seg=seg)  # with its own T1, everything would be tumour
    found = dice_scores(BrightT1(), sample, t1)
    assert found["wt_ratio"] == pytest.approx(6 / 8) and found["wt_false"] == pytest.approx(2 / 8)
    assert found["dice_wt"] == found["dice"] == pytest.approx(8 / 14) and np.isnan(found["dice_tc"])
    nowhere = dice_scores(BrightT1(), sample | dict(seg=0 * seg), t1)
    assert nowhere["wt_false"] == 6  # without a tumour, voxels instead of a share of nothing
