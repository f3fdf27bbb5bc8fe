"""HA-GAN: parameter counts, shapes at every size and fraction, selectors, losses, who learns in which step, slabs, resume."""

import copy
import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from medsynth_lib.data.preparation.cubes import CubeContract
from medsynth_lib.experiments import trained_models as artefacts
from medsynth_lib.models import hagan as models
from medsynth_lib.models import hagan_joint
from medsynth_lib.models.hagan_lean import make_lean
from medsynth_lib.training import hagan
from medsynth_lib.training.hagan import HAGAN, draw_start, select_high, select_low
from medsynth_lib.training.loop import fit

RECIPE = hagan.PAPER | dict(size=32, latent=16, c=4, loss="public", kl_weight=0.01, average=0.9, learning_rate=1e-3)


def algorithm(**changes):
    torch.manual_seed(0)
    return HAGAN(RECIPE | changes)


def volumes(b=2, size=32, seed=1):
    return torch.rand(b, 1, size, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Named(TorchDispatchMode):
    """Notes the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def count(networks):
    with torch.device("meta"):
        return sum(p.numel() for network in networks().values() for p in network.parameters())


@pytest.mark.parametrize(
    "size, millions", [(32, 74.747780), (64, 78.672324), (128, 79.583972), (256, 79.744884), (512, 86.831036)]
)
def test_parameter_counts_are_those_of_table_viii(size, millions):
    """Table VIII: 74.7, 78.7, 79.6, 79.7 million; at 128 and 256 the public models have exactly these counts."""
    assert count(lambda: models.networks(size)) == round(millions * 1e6)


@pytest.mark.parametrize("fraction", models.FRACTIONS)
@pytest.mark.parametrize("size", models.SIZES)
def test_shapes_at_every_size_and_fraction(size, fraction):
    """On the meta device, which computes shapes alone; one logit a volume whatever the depth of the sub-volume."""
    with torch.device("meta"):
        nets = models.networks(size, latent=16, c=4, fraction=fraction)
        depth = int(size * fraction)
        a = nets["G^A"](torch.empty(1, 16))
        assert a.shape == (1, 8, *[size // 4] * 3) and nets["G^L"](a).shape == (1, 1, *[size // 4] * 3)
        x_r = nets["G^H"](select_low(a, 0, depth))
        assert x_r.shape == (1, 1, depth, size, size)
        assert nets["D^H"](x_r, 0.5).shape == nets["D^L"](nets["G^L"](a)).shape == (1, 1)
        assert nets["E^H"](x_r).shape == (1, 8, depth // 4, size // 4, size // 4) and nets["E^G"](a).shape == (1, 16)


def test_other_sizes_and_fractions_are_refused():
    with pytest.raises(ValueError, match="volume size 96"):
        models.networks(96)
    with pytest.raises(ValueError, match="fraction 0.3"):
        models.networks(64, fraction=0.3)
    with pytest.raises(ValueError, match="start 'random'"):
        algorithm(start="random")


@pytest.mark.parametrize(
    "rule, expected",
    [("aligned", set(range(0, 29, 4))), ("any", set(range(29))), ("partition", set(range(0, 32, 4)))],
)
def test_starts_cover_the_volume(rule, expected):
    torch.manual_seed(0)
    assert {draw_start(32, 4, rule) for _ in range(600)} == expected


def test_a_partition_and_aligned_starts_are_told_apart():
    """At fraction 1/8 of 32 both rules draw multiples of 4; with sub-volumes of 8 slices those of a partition never overlap."""
    torch.manual_seed(0)
    starts = {rule: {draw_start(32, 8, rule) for _ in range(600)} for rule in ("partition", "aligned")}
    assert starts == {"partition": {0, 8, 16, 24}, "aligned": {0, 4, 8, 12, 16, 20, 24}}


def test_aligned_selectors_cut_the_same_slices():
    """Features that are the nearest-neighbour quarter of a volume: both cuts agree for every aligned r, not for all others."""
    x = torch.arange(32.0)[None, None, :, None, None].expand(1, 1, 32, 4, 4)
    a = F.interpolate(x, scale_factor=(0.25, 1, 1))
    for r in range(0, 29, 4):
        assert torch.equal(F.interpolate(select_high(x, r, 4), scale_factor=(0.25, 1, 1)), select_low(a, r, 4))
    assert not torch.equal(F.interpolate(select_high(x, 7, 4), scale_factor=(0.25, 1, 1)), select_low(a, 7, 4))


def test_losses_are_equations_4_and_5():
    logits = torch.tensor([[0.3], [-1.2]]), torch.tensor([[2.0], [0.1]])
    paper, public = algorithm(loss="paper"), algorithm()
    d = [v.sigmoid() for v in logits]
    assert torch.isclose(paper.adversarial(logits, True), sum(-p.log().mean() for p in d))
    assert torch.isclose(paper.adversarial(logits, False), sum(-(1 - p).log().mean() for p in d))
    assert torch.isclose(public.adversarial(logits, True), -((logits[0] + logits[1]) / 2).sigmoid().log().mean())


@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("form", ["paper", "public"])
def test_the_game_has_its_direction(form, classes):
    """D wants real volumes judged real and fakes judged fake, G wants fakes judged real. The classifier's cross-entropy: D learns
    it from real volumes alone, in G's loss it weighs .1.
    """
    model, x, label, r = algorithm(loss=form, classes=classes), volumes(), torch.tensor([0, 1]) if classes else None, 8
    real = select_high(x, r, 4), hagan.low_resolution(x)
    generator = torch.Generator().manual_seed(2)
    shift = torch.tensor([2.0, 0.0, 0.0])[: 1 + classes]
    on_real = [torch.randn(2, 1 + classes, generator=generator) + shift for _ in range(2)]  # of D^H and D^L
    on_fake = [torch.randn(2, 1 + classes, generator=generator) - shift for _ in range(2)]
    model.judge = lambda x_r, x_low, r: on_real if x_r is real[0] else on_fake
    a, b = (torch.cat([part[:, :1] for part in logits], 1) for logits in (on_real, on_fake))
    if form == "public":  # one cross-entropy of the mean of both logits; else the sum of both
        a, b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
    d = -a.sigmoid().log().sum(1).mean() - (1 - b.sigmoid()).log().sum(1).mean()
    g = -b.sigmoid().log().sum(1).mean()
    if classes:
        of_real, of_fake = (-(sum(logits)[:, 1:] / 2).softmax(1)[[0, 1], label].log().mean() for logits in (on_real, on_fake))
        d, g = d + of_real, g + 0.1 * of_fake
    assert torch.isclose(model.discriminator_loss(real, r, label), d)
    assert torch.isclose(model.generator_loss(2, r, label), g)


def test_reconstruction_losses_are_equations_6_and_7():
    for form, weights in (("paper", (5, 5)), ("public", (1, 0.5))):
        model, x = algorithm(loss=form), volumes()
        nets, r = model.networks, 8
        x_r, x_low = select_high(x, r, 4), x[:, :, ::4, ::4, ::4]
        high = (nets["G^H"](nets["E^H"](x_r)) - x_r).abs().mean()
        assert torch.isclose(model.high_loss(x_r), weights[0] * high)
        a = nets["G^A"](nets["E^G"](torch.cat([nets["E^H"](part) for part in x.split(4, 2)], 2)))
        ground = (nets["G^L"](a) - x_low).abs().mean() + (nets["G^H"](select_low(a, r, 4)) - x_r).abs().mean()
        assert torch.isclose(model.ground_loss(x, (x_r, hagan.low_resolution(x)), r, None), weights[1] * ground)


def changed(before, after):
    return {name for name in before if any(not torch.equal(before[name][k], after[name][k]) for k in before[name])}


def parameters(model):
    return {n: {k: v.detach().clone() for k, v in net.named_parameters()} for n, net in model.networks.items()}


def test_every_step_moves_its_own_networks_alone():
    model, x = algorithm(), volumes()
    real, r = (select_high(x, 8, 4), hagan.low_resolution(x)), 8
    steps = {
        ("D^H", "D^L"): lambda: model.discriminator_loss(real, r, None),
        hagan.GENERATOR: lambda: model.generator_loss(2, r, None),
        ("E^H",): lambda: model.high_loss(real[0]),
        ("E^G",): lambda: model.ground_loss(x, real, r, None),
    }
    for names, loss in steps.items():
        before = parameters(model)
        model.update(names, loss=loss)
        assert changed(before, parameters(model)) == set(names)
        others = [p for n in model.optimisers if n not in names for p in model.networks[n].parameters()]
        assert all(p.grad is None for p in others)


def after_three_steps(**changes):
    model = algorithm(**changes)
    for k in range(3):
        torch.manual_seed(k)
        model.step({"x": volumes()})
    return {name: net for name, net in parameters(model).items() if name in hagan.GENERATOR}


def test_as_printed_the_encoder_never_reaches_the_generator_and_jointly_it_does():
    """Equations (6), (7) move E^H and E^G alone: the generator is the same to the bit without them (section II-C)."""
    alone, printed, joint = (after_three_steps(**c) for c in (dict(encoder=False), dict(), dict(joint=True)))
    assert not changed(alone, printed)
    assert changed(alone, joint) == set(hagan.GENERATOR)


TOGETHER = (*hagan.GENERATOR, "E^G")


def generator_and_encoder(model):
    return {f"{n}/{k}": p for n in TOGETHER for k, p in model.networks[n].named_parameters()}


@pytest.mark.parametrize("lean", [False, True])
def test_the_joint_step_follows_the_sum_of_both_gradients(lean):
    """G's: adversarial loss and (7); E^G's: (7) alone; also where the lean form runs the two backward one after the other."""

    def losses(model):
        torch.manual_seed(3)
        return dict(g=lambda: model.generator_loss(2, 8, None), e_ground=lambda: model.ground_loss(x, real, 8, None))

    x = volumes()
    real = select_high(x, 8, 4), hagan.low_resolution(x)
    plain, model = algorithm(joint=True, loss="paper"), algorithm(joint=True, loss="paper", lean=lean)
    total = sum(loss() for loss in losses(plain).values())
    parameters = generator_and_encoder(plain)
    want = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
    own = generator_and_encoder(model)
    model.steps_at_once = lambda names, on: None
    for name in TOGETHER:
        model.optimisers[name].step = lambda: None  # so that the gradients can be looked at
    values = model.update(TOGETHER, **losses(model))
    assert torch.isclose(sum(values.values()), total)
    for k, gradient in want.items():
        assert torch.allclose(own[k].grad, gradient, atol=1e-6 + 1e-4 * float(gradient.abs().max())), k
    assert all(p.grad is None for n in ("D^H", "D^L", "E^H") for p in model.networks[n].parameters())


def test_joint_codes_are_drawn_from_the_posterior_and_cost_their_kl():
    """q = N(2, e^-2) in each of 16 elements: moments of 4,096 draws within .01, 7 standard errors; KL in closed form (Kingma)."""
    model = algorithm(joint=True)
    last = model.networks["E^G"].layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([2.0, -2.0]).repeat_interleave(len(last.bias) // 2))
    torch.manual_seed(0)
    z, kl = model.codes(torch.zeros(4096, *model.features(volumes())[0].shape))
    assert abs(z.mean() - 2) < 0.01 and abs(z.std() - math.exp(-1)) < 0.01
    assert torch.isclose(kl, torch.tensor(z.shape[1] * (4 + math.exp(-2) + 2 - 1) / 2))
    printed = algorithm()
    features = printed.features(volumes())
    (code, nothing), (again, _) = printed.codes(features), printed.codes(features)
    assert nothing == 0 and torch.equal(code, again), "as printed nothing is drawn"


@pytest.mark.parametrize("form, weight", [("paper", 3.0), ("public", 0.5)])
def test_the_joint_loss_weighs_recovery_against_the_kl(form, weight):
    """lambda (L1 + L1) + kl_weight KL, or half the L1 terms in the public form: q = N(1, 1/4) in each of 16 elements."""
    model, x, r = algorithm(joint=True, loss=form, lam=3.0, kl_weight=0.02), volumes(), 8
    nets, last = model.networks, model.networks["E^G"].layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0, math.log(0.25)]).repeat_interleave(16))
    real = select_high(x, r, 4), x[:, :, ::4, ::4, ::4]
    torch.manual_seed(3)
    loss = model.ground_loss(x, real, r, None)
    torch.manual_seed(3)
    a = nets["G^A"](1 + 0.5 * torch.randn(2, 16))
    l1 = (nets["G^H"](select_low(a, r, 4)) - real[0]).abs().mean() + (nets["G^L"](a) - real[1]).abs().mean()
    kl = 16 * (1 + 0.25 - math.log(0.25) - 1) / 2
    assert torch.isclose(loss, weight * l1 + 0.02 * kl, rtol=1e-5)


def test_the_encoder_of_a_joint_model_gives_the_mean():
    network = models.EncoderGround(32, 8, 2, variational=True)
    a = torch.randn(3, 4, 8, 8, 8)
    mean, log_variance = network(a, posterior=True)
    assert mean.shape == log_variance.shape == (3, 8) and torch.equal(network(a), mean)
    assert torch.equal(torch.cat([mean, log_variance], 1), network.layers(a).flatten(1))


def test_recovery_comes_first_then_codes_are_counted_and_then_the_game_begins():
    """Of ten steps three, one and six: who learns in each phase."""
    model, generator = algorithm(joint=True, recovery_first=0.3), {"G^A", "G^H", "G^L"}
    for k in range(6):
        before = parameters(model)
        model.learning_rate(k, 10)
        losses = model.step({"x": volumes()})
        moved = changed(before, parameters(model)) & {*generator, "D^H", "D^L", "E^H", "E^G"}
        assert model.phase == ("recovery", "recovery", "recovery", "counting", "game", "game")[k]
        assert moved == generator | {"recovery": {"E^H", "E^G"}, "counting": set(), "game": {"D^H", "D^L"}}[model.phase]
        assert set(losses) == {"e_ground"} | {"recovery": {"e_high"}, "counting": set(), "game": {"d", "g"}}[model.phase]
    with pytest.raises(ValueError, match="recovery_first needs joint"):
        algorithm(recovery_first=0.3)


def test_codes_are_settled_once_when_the_game_begins():
    """`fit` asks for the rate before every step, once for each group: the first time in the game mean and root are taken from the
    codes that were counted, for encoder and generators alike, and the counters are empty again.
    """
    model = algorithm(joint=True, recovery_first=0.05)
    standards = {name: model.networks[name].standard for name in ("E^G", "G^A", "mean G^A")}
    for k in range(4):  # two steps of recovery, two of counting
        model.learning_rate(k, 40)
        for standard in standards.values():
            assert not standard.mean.any() and torch.equal(standard.root, torch.eye(16)), k
        model.step({"x": volumes()})
    encoder = standards["E^G"]
    people, mean = int(encoder.people), encoder.total / encoder.people
    assert people == 4
    covariance = encoder.products / people - torch.outer(mean, mean)
    share = 16 / (16 + 10 * people)  # shrinkage towards a multiple of I
    covariance = (1 - share) * covariance + share * covariance.trace() / 16 * torch.eye(16)
    for k in (4, 4, 5):
        model.learning_rate(k, 40)
        for name, standard in standards.items():
            assert torch.allclose(standard.mean, mean.float()), (k, name)
            assert torch.allclose(standard.root @ standard.root.T, covariance.float(), atol=1e-5), (k, name)
            assert not any(v.any() for v in (standard.people, standard.total, standard.products)), (k, name)
    assert mean.abs().max() > 0.1 and (covariance - torch.eye(16)).abs().max() > 0.1  # not what they were before


def test_settled_codes_are_standard():
    """Of the counted codes themselves, with any mean and covariance: mean 0 and covariance I up to the shrinkage of .0001; few
    codes are shrunk so much that no direction is blown up.
    """
    torch.manual_seed(0)
    standard, mixing = hagan_joint.Standard(4), torch.randn(4, 4) + 2 * torch.eye(4)
    e = torch.randn(4000, 4) @ mixing.T + 5
    assert torch.equal(standard(e), e) and torch.equal(standard.own(e), e)
    for part in e.split(100):
        standard.count(part)
    standard.settle()
    z = standard(e)
    assert z.mean(0).abs().max() < 1e-5 and (z.T.cov() - torch.eye(4)).abs().max() < 2e-3
    assert torch.allclose(standard.own(z), e, atol=1e-4)
    few = hagan_joint.Standard(64)
    few.count(torch.randn(2, 64))
    few.settle()
    assert few(torch.randn(100, 64)).std() < 3


def test_settling_leaves_the_volume_of_a_code_as_it_is():
    model, x = algorithm(joint=True, recovery_first=0.5, classes=2), volumes()
    model.phase = "counting"
    features = model.features(x)
    for _ in range(20):
        model.codes(features)

    def drawn():
        z = model.with_label(model.networks["E^G"](features), torch.tensor([0, 1]))
        return z, model.networks["G^A"](z), model.networks["mean G^A"](z)

    z, *before = drawn()
    model.settle()
    standard, *after = drawn()
    assert not torch.allclose(z, standard, atol=0.1)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(before, after, strict=True))


def test_a_row_of_the_history_holds_every_loss_of_its_steps(tmp_path):
    """Recovery ends within it: every loss is there, a mean over the steps that have it."""
    data = [{"x": v} for v in volumes(3)]
    history = fit(algorithm(joint=True, recovery_first=0.5), data, data[:1], tmp_path, steps=4, validate_every=4, batch_size=2)
    assert {"d", "g", "e_ground", "e_high", "tune_kl"} <= set(history) and history.notna().all(None)


def test_the_running_mean_is_one():
    model = algorithm()
    before = parameters(model)
    model.step({"x": volumes()})
    after = parameters(model)
    for name in hagan.GENERATOR:
        for k, old in before[f"mean {name}"].items():
            assert torch.allclose(after[f"mean {name}"][k], 0.9 * old + 0.1 * after[name][k], atol=1e-6)


@pytest.mark.parametrize("changes", [dict(low_branch=False), dict(encoder=False), dict(start="partition"), dict(loss="paper"),
                                     dict(fraction=1 / 2), dict(start="any"), dict(joint=True),
                                     dict(joint=True, low_branch=False), dict(joint=True, encoder=False)])  # fmt: skip
def test_ablations_of_table_iv_are_one_switch_each_and_batch_size_1_works(changes):
    model = algorithm(**changes)
    losses = model.step({"x": volumes(1)})
    assert all(torch.isfinite(v) for v in losses.values())
    assert ("G^L" in model.networks) == ("D^L" in model.networks) == (changes.get("low_branch") is not False)
    assert ("E^G" in model.networks) == ("e_ground" in losses) == (changes.get("encoder") is not False)
    measured = {"d_real"} if "encoder" in changes else {"d_real", "recovery_l1", *(["kl"] if "joint" in changes else [])}
    assert set(model.validate({"x": volumes(1)})) == measured


def test_a_conditional_model_hears_the_class():
    model, x, label = algorithm(classes=3), volumes(), torch.tensor([0, 2])
    losses = model.step({"x": x, "label": label})
    assert all(torch.isfinite(v) for v in losses.values())
    z = torch.randn(1, 16)
    common, high = model.networks["G^A"], model.networks["G^H"]
    one, two = (hagan.sample(common, high, model.with_label(z, torch.tensor([k]))) for k in (0, 1))
    assert one.shape == (1, 1, 32, 32, 32) and (one - two).abs().max() > 1e-4
    scores = torch.tensor([[9.0, 2.0, 0.0, 0.0], [9.0, 0.0, 0.0, 2.0]])  # the first column judges real or fake
    assert torch.isclose(model.label_loss((scores, scores), label), F.cross_entropy(scores[:, 1:], label))


@pytest.mark.parametrize("size, slices, lean", [(32, 1, False), (32, 3, True), (64, 4, True), (64, 16, False)])
def test_slabs_give_the_whole_volume(size, slices, lean):
    """Two passes over slabs of A equal one pass over all of it, within 1e-5, also where the last slab is smaller."""
    torch.manual_seed(0)
    common, high = models.Common(size, 16, 4), models.High(4)
    with torch.no_grad():
        high.first[2].weight.uniform_(0.5, 2)
        high.first[2].bias.uniform_(-1, 1)
    if lean:
        make_lean(high)
    z = torch.randn(2, 16)
    whole = hagan.sample(common, high, z)
    assert whole.std() > 0.02
    assert (hagan.sample_by_slabs(common, high, z, slices) - whole).abs().max() < 1e-5


def test_one_pass_over_slabs_would_not_do():
    """Each slab's own statistics, as in training, give another volume: the mismatch that the two passes mend."""
    torch.manual_seed(0)
    common, high = models.Common(32, 16, 4), models.High(4)
    a = common(torch.randn(1, 16))
    slabs = torch.cat([high(part) for part in a.split(1, 2)], 2)
    assert (slabs - high(a)).abs().max() > 0.01


@pytest.mark.parametrize("changes", [dict(), dict(joint=True, recovery_first=0.2, beta_1=0.5)])
@pytest.mark.parametrize("until", [1, 2, 3, 4])  # the end of recovery; within counting; before settling; within the game
def test_a_killed_training_resumes_to_the_bit(tmp_path, changes, until, monkeypatch):
    monkeypatch.setattr(hagan, "COUNTING", 0.4)
    data = [{"x": v} for v in volumes(3)]
    settings = dict(steps=5, seed=0, batch_size=2, validate_every=2, checkpoint_every=1)
    whole, parts = algorithm(**changes), algorithm(**changes)
    fit(whole, data, data[:1], tmp_path / "whole", **settings)
    fit(parts, data, data[:1], tmp_path / "parts", until=until, **settings)
    again = algorithm(**changes)
    fit(again, data, data[:1], tmp_path / "parts", **settings)
    for name, network in whole.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, again.networks[name].state_dict()[key]), (name, key)


def test_discriminators_learn_four_times_as_fast(tmp_path):
    model = algorithm()
    fit(model, [{"x": v} for v in volumes()], [{"x": volumes()[0]}], tmp_path, steps=1)
    rates = {name: optimiser.param_groups[0]["lr"] for name, optimiser in model.optimisers.items()}
    assert all(rate == pytest.approx(4e-3 if name.startswith("D") else 1e-3) for name, rate in rates.items())


@pytest.mark.parametrize("lean", [False, True])
def test_the_encoder_of_the_whole_has_its_own_rate(lean, tmp_path):
    """Adam's first step without momentum is the rate in every weight: .05 of 1e-3 for E^G, all of it for E^H."""
    model = algorithm(encoder_rate=0.05, lean=lean)
    before = parameters(model)
    fit(model, [{"x": v} for v in volumes()], [{"x": volumes()[0]}], tmp_path, steps=1)
    after = parameters(model)
    for name, rate in {"E^G": 5e-5, "E^H": 1e-3, "G^A": 1e-3, "D^H": 4e-3}.items():
        step = max(float((after[name][k] - v).abs().max()) for k, v in before[name].items())
        assert step == pytest.approx(rate, rel=0.01), name
        assert model.optimisers[name].param_groups[0]["lr"] == pytest.approx(rate)


def test_a_frozen_copy_is_not_trained():
    model = algorithm()
    assert not any(
        p.requires_grad for n, net in model.networks.items() if n.startswith("mean") for p in net.parameters()
    )
    assert set(model.optimisers) == {"G^A", "G^L", "G^H", "D^H", "D^L", "E^H", "E^G"}
    assert copy.deepcopy(model.networks["mean G^H"]).state_dict().keys() == model.networks["G^H"].state_dict().keys()


def test_a_shipped_model_holds_of_the_generator_its_mean_alone(tmp_path):
    """Loaded again, both are the mean; everything else is what was trained, to half precision."""
    recipe = RECIPE | dict(algorithm="hagan", joint=True, steps=1, batch_size=1, validate_every=1, seed=0)
    model = algorithm(joint=True)
    with torch.no_grad():
        model.networks["G^A"].first.weight.add_(1)
    artefacts.save(tmp_path / "made", model, recipe, CubeContract("t1", 32), torch.device("cpu"), 0.0)
    (tmp_path / "made/history.csv").write_text("step\n1\n")
    artefacts.ship(tmp_path / "made", tmp_path / "shipped")
    shipped = load_file(tmp_path / "shipped/made/weights.safetensors")
    assert not any(k.startswith("G^") for k in shipped)
    assert all(v.dtype == torch.float16 for v in shipped.values())
    loaded = artefacts.load(tmp_path / "shipped/made", "shipped").networks
    for name, source in {"G^A": "mean G^A", "mean G^A": "mean G^A", "D^H": "D^H", "E^G": "E^G"}.items():
        for key, value in model.networks[source].state_dict().items():
            assert torch.equal(loaded[name].state_dict()[key], value.half().float()), (name, key)


def test_precision_and_compilation_are_switches(monkeypatch):
    """Of the environment, since they change rounding alone; precision makes another artefact, and running means never run."""
    monkeypatch.setenv("MEDSYNTH_PRECISION", "16-mixed")
    with pytest.raises(ValueError, match="MEDSYNTH_PRECISION is '16-mixed'; set it to 32-true or bf16-mixed"):
        artefacts.default_fabric()
    monkeypatch.setenv("MEDSYNTH_PRECISION", "bf16-mixed")
    assert artefacts.default_fabric().strategy.precision.precision == "bf16-mixed"
    contract = CubeContract("t1", 32)

    class Data(list):
        frame = pd.DataFrame()

    data = Data([dict()])
    data.contract = contract
    recipe = RECIPE | dict(algorithm="hagan", steps=1, batch_size=1, validate_every=1, seed=0)
    mixed = artefacts.artefact_key(recipe, data, data)
    monkeypatch.delenv("MEDSYNTH_PRECISION")
    assert mixed != artefacts.artefact_key(recipe, data, data)
    trained = []

    def fit(model, *_, **__):
        trained.append(model)
        raise KeyboardInterrupt

    monkeypatch.setattr(artefacts.loop, "fit", fit)
    for setting in ("0", "1"):
        monkeypatch.setenv("MEDSYNTH_COMPILE", setting)
        with pytest.raises(KeyboardInterrupt):
            artefacts.train_or_load("test", recipe, data, data)
    plain, compiled = ({k for k, n in m.networks.items() if n._compiled_call_impl is not None} for m in trained)
    assert not plain and compiled == set(trained[1].optimisers)
