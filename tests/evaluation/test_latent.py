"""Latent directions against toy generators whose factors are planted, and the information bound against its closed form."""

import math
import time
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from medsynth_lib.display.latent import LatentView, explore_latent, walk_figure
from medsynth_lib.evaluation import latent
from medsynth_lib.evaluation.hagan_inference import sample
from medsynth_lib.experiments.hagan import brain_mask
from medsynth_lib.experiments.latent_domain import Domain
from medsynth_lib.models import hagan_joint
from medsynth_lib.models.hagan import networks
from medsynth_lib.settings import InformedHAGANSettings
from medsynth_lib.training.hagan import HAGAN
from medsynth_lib.training.hagan_build import build
from medsynth_lib.training.hagan_information import Posterior, fit_posterior, information_bound, normal_scores

DOSES = torch.linspace(-2, 2, 5)


def toy(n=400, d=12, k=3, noise=0.0, seed=0):
    """Codes, factors and the planted W, whose rows overlap: factor j also depends on what moves factor i."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, d, generator=generator)
    planted = torch.randn(k, d, generator=generator) + torch.randn(d, generator=generator)
    return z, z @ planted.T + 2 + noise * torch.randn(n, k, generator=generator), planted


def test_least_squares_recovers_planted_factors():
    z, y, planted = toy()
    model = latent.least_squares(z, y)
    assert torch.allclose(model.weights, planted, atol=1e-4) and torch.allclose(
        model.offset, torch.full((3,), 2.0), atol=1e-4
    )
    assert torch.allclose(latent.held_out_r2(z, y), torch.ones(3), atol=1e-5)


def test_ridge_helps_where_codes_are_few():
    """30 noisy codes of 25 numbers: held out, least squares is worse than the mean; the chosen ridge is not."""
    z, y, _ = toy(n=30, d=25, noise=8.0)
    ridge, scores = latent.choose_ridge(z, y)
    assert (ridge > 0).all() and (scores.amax(0) > scores[0] + 0.5).all() and scores[0].mean() < 0


def test_each_factor_has_its_own_ridge_and_the_fit_is_that_of_the_formula():
    z, y, _ = toy(n=60, d=25, noise=4.0)
    model = latent.least_squares(z, y, torch.tensor([0.0, 0.1, 3.0]))
    c = latent.covariance(z, z)
    for i, ridge in enumerate((0.0, 0.1, 3.0)):
        assert torch.allclose(model.weights[i], latent.least_squares(z, y, ridge).weights[i], atol=1e-5)
        inverse = torch.linalg.inv(c + ridge * c.diagonal().mean() * torch.eye(25))
        assert torch.allclose(model.weights[i], latent.covariance(y, z)[i] @ inverse, atol=1e-3)


def test_nested_choice_knows_nothing_of_the_codes_that_it_predicts():
    """Factors that have nothing to do with codes: the best of many ridges is never below the nested one, on average."""
    gains = []
    for seed in range(8):
        z, y = (torch.randn(40, n, generator=torch.Generator().manual_seed(seed + 100 * n)) for n in (20, 4))
        best = latent.choose_ridge(z, y)[1].amax(0)
        gains.append((best - latent.held_out_r2(z, y, None)).mean())
    z, y, _ = toy(noise=1.0)
    known = latent.held_out_r2(z, y, None)
    assert torch.stack(gains).mean() > 0.03  # .09; 0 if a fold saw the choice of all
    assert torch.allclose(
        known, latent.choose_ridge(z, y)[1].amax(0), atol=0.01
    )  # with many codes there is nothing to gain


def test_few_codes_give_the_shortest_exact_fit():
    z, y, _ = toy(n=8)
    model = latent.least_squares(z, y)
    assert torch.allclose(model(z), y, atol=1e-3)
    centred = z - z.mean(0)
    outside = model.weights - model.weights @ torch.linalg.pinv(centred) @ centred
    assert outside.abs().max() < 1e-3 * model.weights.abs().max()


@pytest.mark.parametrize("form", ["plain", "orthogonalised", "joint"])
def test_walks_hit_their_predicted_target(form):
    z, y, _ = toy(noise=1.0)
    model = latent.least_squares(z, y)
    directions = latent.joint(z, y) if form == "joint" else getattr(latent, form)(model.weights)
    for factor in range(3):
        codes = latent.walk(z[0], model, directions[factor], factor, 3 + DOSES)
        assert torch.allclose(model(codes)[:, factor], 3 + DOSES, atol=1e-3)


def test_orthogonalised_leaves_other_predictions_alone_and_plain_does_not():
    z, y, _ = toy(noise=1.0)
    model = latent.least_squares(z, y)
    assert torch.allclose(model.weights @ latent.orthogonalised(model.weights).T, torch.eye(3), atol=1e-4)
    moved = model.weights @ latent.plain(model.weights).T
    assert torch.allclose(moved.diagonal(), torch.ones(3), atol=1e-5) and (moved - torch.eye(3)).abs().max() > 0.1


def test_joint_is_orthogonalised_where_codes_are_white_and_fit_is_exact():
    z, _, planted = toy()
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(latent.covariance(z, z))).T  # exactly white
    y = z @ planted.T
    assert torch.allclose(latent.joint(z, y), latent.orthogonalised(planted), atol=1e-4)


def test_entanglement_of_a_linear_generator_is_known():
    """Along W's own rows the drift is <w_i, w_j> / |w_i|^2; along orthogonalised ones there is none."""
    z, y, planted = toy()
    model = latent.least_squares(z, y)
    for form in (latent.plain, latent.orthogonalised):
        d = form(model.weights)
        walks = [[latent.walk(s, model, d[i], i, model(s)[i] + DOSES) for s in z[:4]] for i in range(3)]
        measured = torch.stack([torch.stack(w) for w in walks]) @ planted.T
        found = latent.entanglement(DOSES, measured)
        assert torch.allclose(found, d @ planted.T, atol=1e-3)
        assert torch.allclose(found, latent.foreseen(model.weights, 5 * d), atol=1e-3)  # the length of d plays no part
        assert torch.allclose(latent.scaled(model.weights, 5 * d), d, atol=1e-4)
        assert (latent.purity(found) > 0.99) == (form is latent.orthogonalised)
        assert torch.allclose(latent.walk_purities(DOSES, measured), latent.purity(found).expand(4), atol=1e-3)


def test_a_walk_with_nan_is_left_out_and_purity_has_its_bounds():
    measured = DOSES[None, None, :, None].repeat(2, 3, 1, 2)
    measured[:, 1, 2] = float("nan")
    assert torch.allclose(latent.entanglement(DOSES, measured), torch.ones(2, 2))
    assert latent.purity(torch.ones(2, 2)) == 0.5 and latent.purity(torch.eye(4)) == 1
    assert latent.purity(torch.tensor([[1.0, -1.0], [0.0, 1.0]])) == 0.75  # drift counts whichever way it goes
    assert latent.purity(torch.tensor([[-1.0, 0.0], [0.0, 1.0]])) == 0.5  # a reversed response is not wanted


def test_a_walk_with_nan_in_one_factor_counts_in_none():
    """Two walks along each of two directions, by planted slopes; the one with a nan in its second factor has another slope in
    its first. Along the other direction no walk is whole: that row is nan, though each factor was measured once.
    """
    planted = torch.tensor([[[1.0, 0.25], [3.0, 5.0]], [[2.0, 1.0], [4.0, 1.0]]])  # direction, walk, factor
    measured = DOSES[:, None] * planted[:, :, None]
    assert torch.allclose(latent.entanglement(DOSES, measured), planted.mean(1))
    measured[0, 1, 2, 1] = float("nan")
    measured[1, 0, 0, 0] = measured[1, 1, 4, 1] = float("nan")
    found = latent.entanglement(DOSES, measured)
    assert torch.allclose(found[0], planted[0, 0]) and found[1].isnan().all()


def test_purity_of_a_direction_along_which_nothing_moves_is_nan():
    still, moving = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    assert latent.purity(still).isnan()
    found = latent.purity(torch.stack([still, moving]))  # one matrix spoils no other
    assert found[0].isnan() and found[1] == (1 + 1 / 4) / 2


def test_monotonicity():
    assert latent.monotonicity(DOSES, DOSES**3) == pytest.approx(1)
    assert latent.monotonicity(DOSES, -DOSES) == pytest.approx(-1)
    for values in (torch.zeros(5), DOSES.log()):
        assert latent.monotonicity(DOSES, values) != latent.monotonicity(DOSES, values)  # nan


def test_slerp_keeps_the_norm_and_lerp_does_not():
    a, b = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    a, b, t = 8 * a / a.norm(), 8 * b / b.norm(), torch.linspace(0, 1, 5)
    arc = latent.spherical(a, b, t)
    assert torch.allclose(arc.norm(dim=1), torch.full((5,), 8.0), atol=1e-4)
    assert torch.allclose(arc[[0, -1]], torch.stack([a, b]), atol=1e-4)
    steps = torch.nn.functional.cosine_similarity(arc[1:], arc[:-1])
    assert torch.allclose(steps, steps[0].expand(4), atol=1e-4)  # at constant speed
    assert latent.linear(a, b, t)[2].norm() < 7
    assert torch.allclose(latent.spherical(a, a, t), a.expand(5, -1), atol=1e-4)


def test_slerp_between_codes_of_different_lengths():
    """Lengths go evenly from one to the other; the directions are those between the unit vectors, whatever the lengths."""
    a, b = torch.nn.functional.normalize(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)))
    t = torch.linspace(0, 1, 5)
    arc = latent.spherical(2 * a, 6 * b, t)
    assert torch.allclose(arc.norm(dim=1), torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0]), atol=1e-4)
    assert torch.allclose(arc / arc.norm(dim=1, keepdim=True), latent.spherical(a, b, t), atol=1e-4)
    assert torch.allclose(arc[[0, -1]], torch.stack([2 * a, 6 * b]), atol=1e-4)
    assert torch.allclose(
        latent.spherical(2 * a, 6 * a, t).norm(dim=1), arc.norm(dim=1), atol=1e-4
    )  # no angle between them


def test_projection_finds_the_code_of_a_toy_generator():
    w = torch.randn(8, 200, generator=torch.Generator().manual_seed(1))
    truth = torch.randn(1, 8, generator=torch.Generator().manual_seed(2))
    z, errors = latent.project(lambda z: z @ w, truth @ w, torch.zeros(1, 8), 120)
    assert errors[0] > 1 and min(errors) < 0.1 * errors[0] and torch.allclose(z, truth, atol=0.2)
    assert torch.isclose((z @ w - truth @ w).abs().mean(), torch.tensor(min(errors)), rtol=1e-4)


def test_nearest_orthonormal():
    _, _, planted = toy()
    u = latent.nearest_orthonormal(planted)
    assert torch.allclose(u @ u.T, torch.eye(3), atol=1e-5)
    assert torch.allclose(latent.nearest_orthonormal(5 * u), u, atol=1e-5)


def test_information_bound_is_the_mutual_information_for_the_true_posterior_and_less_for_any_other():
    """c and x jointly Gaussian with correlation rho: I = -log(1 - rho^2) / 2, and q(c | x) = N(rho x, 1 - rho^2)."""
    rho, generator = 0.8, torch.Generator().manual_seed(0)
    c, noise = torch.randn(2, 200_000, 1, generator=generator)
    x = rho * c + (1 - rho**2) ** 0.5 * noise
    truth = -0.5 * torch.log(torch.tensor(1 - rho**2))
    variance = torch.tensor(1 - rho**2)
    assert torch.isclose(information_bound(c, rho * x, variance.log().expand_as(c)), truth, atol=0.01)
    for slope, v in ((0.5, variance), (1.0, variance), (rho, torch.tensor(0.1)), (rho, torch.tensor(1.0))):
        assert information_bound(c, slope * x, v.log().expand_as(c)) < truth - 0.02
    assert abs(information_bound(c, 0 * x, torch.zeros_like(c))) < 0.01  # the prior as posterior: nothing is known
    twice = information_bound(c.repeat(1, 2), rho * x.repeat(1, 2), variance.log().expand(len(c), 2))
    assert torch.isclose(twice, 2 * truth, atol=0.02)  # independent elements add


def test_normal_scores_follow_the_ranks_alone():
    values = torch.exp(torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)))
    scores = normal_scores(values)
    assert torch.allclose(scores, normal_scores(values.log()))
    assert scores.mean(0).abs().max() < 1e-5 and (scores.std(0) - 1).abs().max() < 0.02
    with pytest.raises(ValueError, match="finite"):
        normal_scores(torch.tensor([[1.0], [float("nan")]]))


@pytest.mark.slow
def test_fitting_the_posterior_finds_what_volumes_know_of_a_measurement():
    """Volumes as bright as a noisy copy of the measurement, correlation .9: I = -log(1 - .81) / 2 = .83 nats. Held out, the bound
    comes near (2,048 volumes: standard error .02); the prior has 0, as has a Q whose measurements are shuffled.
    """
    generator = torch.Generator().manual_seed(0)
    c, noise = torch.randn(2, 2560, 1, generator=generator)
    x = (0.9 * c + 0.19**0.5 * noise)[..., None, None, None].expand(-1, 1, 8, 8, 8) / 4
    scores = {}
    for kind, measures in dict(true=c[:512], shuffled=c[:512][torch.randperm(512, generator=generator)]).items():
        torch.manual_seed(0)
        q = Posterior(1)
        fit_posterior(q, x[:512], measures, 100)
        with torch.no_grad():
            scores[kind] = float(information_bound(c[512:], *q(x[512:])))
    truth = -0.5 * math.log(1 - 0.81)
    assert abs(scores["true"] - truth) < 0.06 and abs(scores["shuffled"]) < 0.06


def test_a_posterior_that_is_too_sure_finds_its_way_back():
    """Between -4 and 2, and with a gradient at both ends."""
    q = Posterior(1, width=2)
    with torch.no_grad():
        q.layers[-1].weight.zero_()
        q.layers[-1].bias.copy_(torch.tensor([0.0, -6.0]))
    mean, log_variance = q(torch.rand(1, 1, 8, 8, 8))
    assert -4 < log_variance < -3
    information_bound(torch.tensor([[3.0]]), mean, log_variance).backward()
    assert q.layers[-1].bias.grad[1] > 1  # uphill: less sure


def test_specks_are_no_brain():
    cube = torch.full((1, 6, 6, 6), -1.0)
    assert not brain_mask(cube).any()
    cube[0, :3, :3, :3] = 0.5
    body = cube[0] > 0
    cube[0, 5, 5, 5] = 0.9
    assert torch.equal(brain_mask(cube), body)


def informed(weight):
    settings = InformedHAGANSettings(
        size=32, latent=8, c=2, fraction=0.25, beta_1=0.5, average=0.5, lean=True, learning_rate=0.002,
        information_weight=weight,
    )  # fmt: skip
    torch.manual_seed(0)
    start = hagan_joint.networks(32, 8, 2, 0.25)
    start |= {f"mean {n}": start[n] for n in ("G^A", "G^L", "G^H")} | {"Q": Posterior(2)}
    return build(settings, torch.eye(2, 8), start)


def test_it_goes_on_from_a_trained_start():
    """Generator, discriminators and Q have the start's weights, to begin with the running means too; there is no encoder."""
    model = informed(0.0)
    assert set(model.optimisers) == {"G^A", "G^L", "G^H", "D^H", "D^L", "Q"}
    torch.manual_seed(0)
    start = hagan_joint.networks(32, 8, 2, 0.25)
    for name in ("G^A", "G^L", "G^H", "D^H", "D^L"):
        for copy in (name, f"mean {name}") if name.startswith("G") else (name,):
            have = model.networks[copy].state_dict()
            assert all(torch.equal(have[k], v) for k, v in start[name].state_dict().items()), copy
    plain = networks(32, 8, 2, 0.25) | {"Q": Posterior(2)}  # a start whose codes are not standardised
    settings = InformedHAGANSettings(size=32, latent=8, c=2, fraction=0.25)
    assert not hasattr(build(settings, torch.eye(2, 8), plain).networks["G^A"], "standard")


def test_generator_loss_is_hagan_s_less_the_weighted_bound():
    losses, x = {}, torch.zeros(4, 1, 32, 32, 32)
    for weight in (0.0, 2.0):
        model = informed(weight)
        real = model.cut({"x": x}, 8)
        torch.manual_seed(5)
        losses[weight] = model.generator_loss(real)
        torch.manual_seed(5)
        assert weight or torch.isclose(losses[weight], HAGAN.generator_loss(model, real))
        torch.manual_seed(5)
        z = torch.randn(4, 8)
        bound = model.bound(z, model.generate(z, real)[1])
    assert torch.isclose(losses[0.0] - losses[2.0], 2 * bound, rtol=1e-4, atol=1e-5)


def test_validation_is_entropy_plus_log_q():
    """k/2 log(2 pi e) + E log q, k = 2: of Uz given the small volumes of 16 fixed codes; of measurements given held-out ones."""
    model, generator = informed(0.0), torch.Generator().manual_seed(3)
    nets = model.networks
    model.basis = latent.nearest_orthonormal(torch.randn(2, 8, generator=generator))  # no mere choice of coordinates
    torch.nn.init.normal_(nets["Q"].layers[-1].bias, generator=generator)  # a Q that is not the prior
    batch = dict(
        x=torch.rand(3, 1, 32, 32, 32, generator=generator) * 2 - 1, measures=torch.randn(3, 2, generator=generator)
    )
    z = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))

    def by_hand(c, small):
        mean, log_variance = nets["Q"](small)
        log_q = torch.distributions.Normal(mean, log_variance.exp() ** 0.5).log_prob(c)
        return math.log(2 * math.pi * math.e) + log_q.sum(1).mean()

    with torch.no_grad():
        found = model.validate(batch)
        fake = by_hand(z @ model.basis.T, nets["G^L"](nets["G^A"](z)))
        real = by_hand(batch["measures"], batch["x"][:, :, ::4, ::4, ::4])
    assert set(found) == {"bound_real", "bound_fake"} and abs(real - fake) > 0.01
    assert torch.isclose(found["bound_fake"], fake, rtol=1e-4, atol=1e-5)
    assert torch.isclose(found["bound_real"], real, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_training_with_the_term_raises_the_bound():
    bounds = {}
    for weight in (0.0, 3.0):
        model = informed(weight)
        z = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(2)
        batch = dict(x=torch.rand(4, 1, 32, 32, 32) * 2 - 1, measures=torch.randn(4, 2))
        for step in range(20):
            torch.manual_seed(step)
            model.step(batch)
        with torch.no_grad():
            bounds[weight] = float(model.bound(z, model.generate(z, model.cut(batch, 0))[1]))
    assert bounds[3.0] > bounds[0.0] + 0.05


@pytest.mark.slow
def test_explorer_redraws_within_its_time_and_shows_what_it_generates(monkeypatch):
    monkeypatch.setenv("MEDSYNTH_HEADLESS", "1")
    nets = networks(32, 8, 2, 0.25)
    view = LatentView(
        lambda z: sample(nets["G^A"], nets["G^H"], z), torch.zeros(8), ["a", "b"], torch.eye(2, 8), torch.ones(3)
    )
    used = []
    for _ in range(5):  # the processor's time: others may be using the machine
        began = time.process_time()
        view.move([1.0, 1.0]), view.png()
        used.append(time.process_time() - began)
    assert min(used) < 0.3 and view.seconds_a_move() > 0
    view.measure = lambda volumes: volumes.flatten(1)[:, :2]
    view.move([0.0, 0.0])
    assert "measured: a " in view.figure.get_suptitle()
    before = view.png()
    volume = view.move([0.0, 3.0])
    shown = view.images["axial"].get_array()
    expected = sample(nets["G^A"], nets["G^H"], torch.tensor([[0.0, 3.0] + [0.0] * 6]))[0, 0]
    assert torch.allclose(torch.from_numpy(volume), expected, atol=1e-6)
    assert torch.allclose(torch.as_tensor(shown.data), expected[:, :, 16].T, atol=1e-6) and view.png() != before
    assert len(explore_latent(view, "toy").axes) == 2 * 6
    plt.close("all")


def test_walk_figure_shows_the_slice_with_the_largest_mask():
    volume = torch.zeros(8, 8, 8)
    volume[:, :, 5] = 1
    mask = torch.zeros(8, 8, 8, dtype=torch.bool)
    mask[2:5, 2:5, 5] = True
    figure = walk_figure(
        [("toy", "axial", [(volume, mask, "10 %")] * 2)], torch.tensor([1.0, 2.0, 3.0]), (0, 1), "lime", "t"
    )
    assert figure.axes[0].images[0].get_array().min() == 1 and figure.axes[0].get_aspect() == 2
    assert [axis.get_xlabel() for axis in figure.axes] == ["10 %"] * 2
    empty = torch.zeros_like(mask)  # a row without a mask of its own follows the first one's slice
    rows = [("toy", "axial", [(volume, m, "")]) for m in (mask, empty)]
    figure = walk_figure(rows, torch.ones(3), (0, 1), "lime", "t", ["start"], one_slice=True)
    assert figure.axes[1].images[0].get_array().min() == 1 and figure.axes[0].get_title() == "start"
    plt.close("all")


def test_equal_codes_are_measured_once(monkeypatch):
    """Three walks of five doses from two starts share what they start from: 2 + 3 x 2 x 4 volumes, in the right places."""
    domain, seen = Domain("ct", {}, "toy", {}, 32, torch.ones(3)), []

    def measured(volumes):
        seen.append(len(volumes))
        return pd.DataFrame(volumes.numpy(), columns=domain.names)

    monkeypatch.setattr(Domain, "generate", lambda self, z: z @ torch.arange(24.0).view(6, 4))
    monkeypatch.setattr(Domain, "measured", lambda self, volumes: measured(volumes))
    population = pd.DataFrame(np.random.default_rng(0).normal(3, 2, (9, 4)), columns=domain.names)
    domain = replace(domain, population=population)
    z, directions = (torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) for n in (2, 3))
    codes = z[:, None] + DOSES[:, None] * directions[:, None, None]  # (3, 2, 5, 6)
    found = domain.measured_codes(codes)
    volumes = codes.flatten(0, -2) @ torch.arange(24.0).view(6, 4)
    wanted = domain.standardised(pd.DataFrame(volumes.numpy(), columns=domain.names))
    assert sum(seen) == 2 + 3 * 2 * 4 and torch.allclose(found, wanted.view(3, 2, 5, 4), atol=1e-4)
