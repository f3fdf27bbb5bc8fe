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
from medsynth_lib.settings import (
    AdaptationSettings,
    PaperCodeSettings,
    PaperTextSettings,
    Pix2PixSettings,
    SliceVAESettings,
)
from medsynth_lib.training.adaptation import Adaptation, SourceAndTarget, aggregate, posterior, source_posteriors
from medsynth_lib.training.adaptation_course import Course, norm
from medsynth_lib.training.adaptation_paper_code import (
    PaperCode,
    jittered,
    percentile,
    scrambled_slices,
    turned,
    windowed,
)
from medsynth_lib.training.adaptation_paper_text import PaperText
from medsynth_lib.training.pix2pix import Pix2Pix, l1_loss, lsgan_loss
from medsynth_lib.training.segmentation import INPUTS, regions
from medsynth_lib.training.svae import to_cube, volume_to_slices

SCHEDULE = dict(learning_rate=1e-3, constant_until=0.0, decay_until=1.0, final_learning_rate=1e-4)
SVAE = SliceVAESettings(size=16, width=16)


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


def course(parts, **changes):
    generator, encoder, real, _ = parts
    encoder, settings = copy.deepcopy(encoder), AdaptationSettings(**SCHEDULE | changes)
    return Course(settings, copy.deepcopy(generator), encoder, SVAE, source_posteriors(encoder, real, SVAE))


def paper_text(parts):
    generator, encoder, real, _ = parts
    encoder = copy.deepcopy(encoder).train()
    bank = source_posteriors(encoder, real, SVAE)
    return PaperText(PaperTextSettings(**SCHEDULE), copy.deepcopy(generator), encoder, SVAE, bank)


def paper_code(parts, **changes):
    generator, encoder, _, _ = parts
    torch.manual_seed(1)  # of the discriminator
    settings = PaperCodeSettings(width=4, **changes)
    return PaperCode(settings, copy.deepcopy(generator), copy.deepcopy(encoder), SVAE)


def weights(algorithm, network="generator"):
    return torch.cat([p.detach().flatten() for p in algorithm.networks[network].parameters()])


def kl_by_hand(p, q):
    """Every element of KL(p || q), in plain Python."""
    mean_p, log_p, mean_q, log_q = (v.flatten().tolist() for v in (*p, *q))
    return [
        0.5 * (lq - lp + (np.exp(lp) + (mp - mq) ** 2) / np.exp(lq) - 1)
        for mp, lp, mq, lq in zip(mean_p, log_p, mean_q, log_q, strict=True)
    ]


# -- the course's recipe -------------------------------------------------------------------------------------------------


def test_rho_zero_is_continued_training_to_the_bit(parts):
    """The control of every row: with rho 0 nothing of encoder or target enters."""
    generator, _, _, batch = parts
    adapted = course(parts)
    plain = Pix2Pix(Pix2PixSettings(width=4, loss="l1", learning_rate=1e-3))
    plain.networks["generator"].load_state_dict(generator.state_dict())
    for _ in range(3):
        adapted.step(batch)
        plain.step(batch)
    assert torch.equal(weights(adapted), weights(plain))


def test_the_latent_gradient_has_rho_times_the_supervised_norm(parts):
    generator, _, _, batch = parts
    algorithm = course(parts, rho=0.3)
    supervised = torch.autograd.grad(l1_loss(generator(batch["x"]), batch["y"]), list(generator.parameters()))
    algorithm.step(batch)
    both = [p.grad for p in algorithm.networks["generator"].parameters()]
    latent = norm([b - s for b, s in zip(both, supervised, strict=True)])
    assert torch.isclose(latent, 0.3 * norm(supervised), rtol=1e-4)


def test_a_target_without_brain_leaves_continued_training(parts):
    """An empty mask gives a latent gradient of exactly zero; scaled to the supervised norm, it would divide by zero."""
    batch = parts[-1] | dict(target_mask=torch.zeros_like(parts[-1]["target_mask"]))
    empty, plain = course(parts, rho=0.3), course(parts)
    for algorithm in (empty, plain):
        algorithm.step(batch)
    assert weights(empty).isfinite().all() and torch.equal(weights(empty), weights(plain))


@pytest.mark.parametrize("make", [course, paper_text, paper_code])
def test_the_divergence_falls(parts, make):
    """The sign of the latent loss: steps along its gradient bring the generated volume nearer to the source."""
    algorithm, batch = make(parts), parts[-1]
    adam = torch.optim.Adam(algorithm.networks["generator"].parameters(), 1e-3)
    before = algorithm.latent(batch).item()
    for _ in range(5):
        adam.zero_grad()
        algorithm.latent(batch).backward()
        adam.step()
    assert algorithm.latent(batch).item() < 0.98 * before


def test_a_large_rho_lowers_the_divergence_that_a_step_reports(parts):
    algorithm, plain = course(parts, rho=100.0), course(parts)
    for _ in range(5):
        for each in (algorithm, plain):
            each.step(parts[-1])
    assert algorithm.latent(parts[-1]) < plain.latent(parts[-1])


# -- the paper's text ----------------------------------------------------------------------------------------------------


def test_without_an_encoder_the_second_update_is_on_nothing(parts):
    """The control of the paper's text: the latent loss times 0 on the same Adam; and not continued training."""
    generator, _, _, batch = parts
    control = PaperText(PaperTextSettings(**SCHEDULE), copy.deepcopy(generator))
    twin, continued = copy.deepcopy(generator), course(parts)
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


def test_the_papers_text_sums_the_largest_55_percent(parts):
    """By brute force over the elements of KL: another share, or the smallest, would be another loss."""
    _, _, real, batch = parts
    algorithm = paper_text(parts)
    p = posterior(copy.deepcopy(algorithm.encoder), real[1:2], SVAE)
    q = posterior(copy.deepcopy(algorithm.encoder), algorithm.networks["generator"](batch["target_x"]), SVAE)
    elements = kl_by_hand(p, q)
    assert len(elements) == 16 * 16 * 2 * 2  # slices, width, and 2 x 2 positions
    largest = sorted(elements, reverse=True)[:563]  # of 1024: 55 % is 563.2
    assert algorithm.latent(batch).item() == pytest.approx(sum(largest), rel=1e-4)
    assert sum(largest) < 0.9999 * sum(elements) - 1e-3  # what is left out would show


def test_pair_and_bank(parts):
    """The course's prior is all source volumes; with a bank of one volume it is that one's posterior."""
    _, encoder, real, batch = parts
    algorithm = course(parts, rho=1.0)
    q = posterior(encoder, algorithm.networks["generator"](batch["target_x"]), SVAE)
    p = posterior(encoder, real[1:2], SVAE)
    assert not torch.isclose(algorithm.latent(batch), kl(p, q).mean(), rtol=1e-3)
    one = source_posteriors(encoder, real[1:2], SVAE)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(aggregate(*one), one, strict=True))
    algorithm.prior = aggregate(*one)
    assert torch.isclose(algorithm.latent(batch), kl(p, q).mean(), rtol=1e-4)


# -- the paper's public code -----------------------------------------------------------------------------------------------


def test_the_public_code_averages_the_largest_55_percent(parts):
    """By brute force over the elements: the mean of those above the 45th percentile, not their sum."""
    algorithm, batch = paper_code(parts), parts[-1]
    with torch.no_grad():
        q = algorithm.encode(algorithm.networks["generator"](batch["target_x"]))
        p = algorithm.encode(batch["y"])
    elements = sorted(kl_by_hand(p, q))
    largest = elements[461:]  # of 1024; the 45th percentile is the element with index round(0.45 * 1023) = 460
    assert algorithm.latent(batch).item() == pytest.approx(np.mean(largest), rel=1e-4)
    assert np.mean(largest) > 1.1 * np.mean(elements)  # the share shows


def test_percentiles_are_the_nearest_values():
    values = torch.randn(1001, generator=torch.Generator().manual_seed(0)) * 3
    for q in (0, 1, 45, 99, 100):
        assert percentile(values, q) == values.sort().values[round(q * 10)]
    values.requires_grad_()
    assert not percentile(values, 45).requires_grad


def test_a_cube_is_cut_between_its_1st_and_99th_percentile():
    """Affine in between, 0 and 1 beyond; what is cut gets no gradient."""
    cube = torch.linspace(-3, 7, 1001)[
        torch.randperm(1001, generator=torch.Generator().manual_seed(0))
    ].requires_grad_()
    found = windowed(cube)
    low, high = -3 + 0.01 * 10, -3 + 0.99 * 10
    assert torch.allclose(found, ((cube - low) / (high - low)).clip(0, 1), atol=1e-5)
    found.sum().backward()
    assert torch.equal(cube.grad > 0, (cube >= low - 1e-4) & (cube <= high + 1e-4)) and 0 < (cube.grad == 0).sum() < 30


def test_the_public_code_scrambles_slices():
    """Every number is still there; rows of several axial slices make a slice, and no slice is a plane of the volume."""
    volume = torch.arange(4 * 6 * 8).reshape(4, 6, 8).float()  # x, y, z
    slices = scrambled_slices(volume, 8)
    assert slices.shape == (8, 1, 8, 8)
    filled = slices[1:7, 0, 2:6]  # 6 slices of 4 x 8, padded to 8 x 8 x 8
    memory = [float(volume[3 - x, 5 - y, 7 - z]) for z in range(8) for y in range(6) for x in range(4)]
    assert filled.flatten().tolist() == memory  # read in another order of axes than it was stored in
    for plane in ("sagittal", "coronal", "axial"):
        planes = {tuple(sorted(s.flatten().tolist())) for s in volume_to_slices(to_cube(volume, 8), plane)}
        assert not planes & {tuple(sorted(s.flatten().tolist())) for s in slices[1:7]}


def test_the_public_codes_first_update_is_its_pix2pix_step(parts):
    """LSGAN + 100 L1 + 1.5 (5 l0 + 1.5 l3 + 1.5 l6 + l9) against the updated D, on the generator's Adam."""
    batch, algorithm = parts[-1], paper_code(parts)
    control = PaperCode(algorithm.settings, copy.deepcopy(parts[0]))
    control.networks["discriminator"].load_state_dict(algorithm.networks["discriminator"].state_dict())
    g, d = (copy.deepcopy(algorithm.networks[name]) for name in ("generator", "discriminator"))
    adams = {network: torch.optim.Adam(network.parameters(), 1e-6, (0.5, 0.999)) for network in (g, d)}
    x, y = batch["x"], batch["y"]
    y_hat = g(x)
    real, fake = torch.cat([x, y], 1), torch.cat([x, y_hat], 1)
    ((lsgan_loss(d(real)[0], True) + lsgan_loss(d(fake.detach())[0], False)) / 2).backward()
    adams[d].step()
    logits, found, first = d(fake)
    _, wanted, first_wanted = d(real)
    layers = [l1_loss(a, b.detach()) for a, b in zip(found, wanted, strict=True)]
    layers = [l1_loss(torch.cat(first, 1), torch.cat(first_wanted, 1).detach()), *layers]
    matching = 5 * layers[0] + 1.5 * layers[1] + 1.5 * layers[2] + layers[3]
    adams[g].zero_grad()
    (lsgan_loss(logits, True) + 100 * l1_loss(y_hat, y) + 1.5 * matching).backward()
    adams[g].step()
    adams[g].zero_grad(set_to_none=False)
    adams[g].step()  # the second update, on nothing
    losses = control.step(batch)
    assert "latent" not in losses and losses["matching"].item() == pytest.approx(matching.item(), rel=1e-5)
    assert torch.allclose(
        weights(control, "discriminator"), torch.cat([p.flatten() for p in d.parameters()]), atol=1e-9
    )
    assert torch.allclose(weights(control), torch.cat([p.flatten() for p in g.parameters()]), atol=1e-9)
    losses = algorithm.step(batch)
    assert set(losses) == {"l1", "discriminator", "adversarial", "matching", "latent"}
    assert not torch.equal(weights(algorithm), weights(control))


def test_features_are_those_of_the_first_convolution_and_the_blocks(parts):
    """l0 is taken before the norm: instance norm would forget a gain, which l0 sees."""
    d, x = paper_code(parts).networks["discriminator"], torch.rand(1, 3, 16, 16, 8)
    d.first.convolution.bias.data.zero_()
    (_, one, first), (_, two, doubled) = d(x), d(2 * x)
    first, doubled = torch.cat(first, 1), torch.cat(doubled, 1)
    assert torch.allclose(first, d.first.convolution(x), atol=1e-5) and first.shape[2:] == (15, 15, 7)
    assert torch.allclose(doubled, 2 * first, rtol=1e-4, atol=1e-5)
    assert len(one) == 3 and torch.allclose(two[0], one[0], atol=2e-2) and one[0].shape[2:] == (8, 8, 4)


def test_source_and_target_are_turned_alike():
    """x, y and target_x keep their voxels together; none is lost, and one draw in a few leaves them as they are."""
    place = torch.arange(4 * 6 * 8.0).reshape(1, 1, 4, 6, 8)
    images = dict(x=torch.cat([place, place + 1000], 1), y=place, target_x=place - 1000)
    generator, shapes = torch.Generator().manual_seed(0), set()
    for _ in range(30):
        found = turned(images, generator)
        assert torch.equal(found["x"][:, :1], found["y"]) and torch.equal(found["target_x"] + 1000, found["y"])
        assert torch.equal(found["y"].flatten().sort().values, place.flatten())
        shapes.add(tuple(found["y"].shape[2:]))
    assert len(shapes) > 2  # quarter turns in several planes


def test_brightness_comes_before_contrast_about_the_whole_volumes_mean():
    x = torch.rand(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5
    b, c = (0.3 + 1.2 * torch.rand(2, generator=torch.Generator().manual_seed(3))).tolist()
    bright = (b * x).clip(0, 1)
    means = bright.flatten(2).mean(2)[..., None, None, None]
    assert torch.allclose(
        jittered(x, torch.Generator().manual_seed(3)), (means + c * (bright - means)).clip(0, 1), atol=1e-6
    )


def test_source_and_target_have_brightness_of_their_own(parts):
    algorithm, batch = paper_code(parts), parts[-1]
    same = batch | dict(target_x=batch["x"])
    found = algorithm.prepare(same, torch.Generator().manual_seed(0))
    assert set(found) == {"x", "y", "target_x"} and not torch.allclose(found["x"], found["target_x"], atol=1e-3)


# -- what they share -------------------------------------------------------------------------------------------------------


def test_volumes_follow_the_encoder_to_its_device(parts):
    """Volumes come from the CPU while the encoder is on a GPU, for which the device 'meta' stands in here."""
    _, encoder, real, _ = parts
    mean, log_variance = posterior(copy.deepcopy(encoder).to(torch.device("meta")), real, SVAE)
    assert mean.device.type == log_variance.device.type == "meta" and len(mean) == len(real)


@pytest.mark.parametrize("make, frozen", [(course, True), (paper_text, False), (paper_code, False)])
def test_the_encoder_is_frozen_to_the_bit_only_in_the_course(parts, make, frozen):
    """In the public code train-mode batch norm moves the 'frozen' encoder's running statistics."""
    algorithm = make(parts, rho=0.3) if make is course else make(parts)
    before = copy.deepcopy(algorithm.encoder.state_dict())
    algorithm.step(parts[-1])
    after = algorithm.encoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k, _ in algorithm.encoder.named_parameters())
    assert all(torch.equal(before[k], after[k]) for k in before) == frozen


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
    assert len(SourceAndTarget(source, target, limit=1)) == 3
    assert set(every[0]) == set(Adaptation.reads)


@pytest.mark.parametrize("sources, targets, limit", [(3, 2, None), (2, 3, None), (3, 4, 1)])
def test_a_paired_epoch_is_as_long_as_the_longer_list(sources, targets, limit):
    """As in the public code: fewer target volumes alone leave the supervised steps of an epoch as they are."""
    source = [dict(x=i, y=10 + i, mask=True) for i in range(sources)]
    target = [dict(x=100 + i, mask=True) for i in range(targets)]
    paired, used = SourceAndTarget(source, target, paired=True, limit=limit), limit or targets
    found = [(paired[k]["x"], paired[k]["target_x"]) for k in range(len(paired))]
    assert found == [(k % sources, 100 + k % used) for k in range(max(sources, used))]


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
