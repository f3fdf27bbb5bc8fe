"""HA-GAN's joint form: drawn codes and their KL, phases, counted and standardised codes, gradients of both losses."""

import math

import pytest
import torch
from hagan_toys import R, algorithm, changed, parameters, real_of, same_state, volumes

from medsynth_lib.models import hagan_joint as models
from medsynth_lib.settings import ConditionalJointHAGANSettings, HAGANSettings, JointHAGANSettings
from medsynth_lib.training import hagan_joint
from medsynth_lib.training.hagan import GENERATOR, select_low
from medsynth_lib.training.loop import Run, fit

TOGETHER = (*GENERATOR, "E^G")
PRINTED = dict(recovery_first=0.0, beta_1=0.0, encoder_rate=1.0)  # what differs from the paper's form is (7) alone


def joint(**changes):
    return algorithm(JointHAGANSettings, **PRINTED | changes)


def test_jointly_equation_7_reaches_the_generator():
    after = {}
    for kind, changes in ((HAGANSettings, {}), (JointHAGANSettings, PRINTED)):
        model = algorithm(kind, average=0.0, **changes)
        for k in range(3):
            torch.manual_seed(k)
            model.step({"x": volumes()})
        after[kind] = {name: net for name, net in parameters(model).items() if name in GENERATOR}
    assert changed(*after.values()) == set(GENERATOR)


@pytest.mark.parametrize("lean", [False, True])
def test_the_joint_update_follows_the_sum_of_both_gradients(lean):
    """G's: adversarial loss and (7); E^G's: (7) alone; also where the lean form runs the two backward one after the other."""

    def terms(model):
        torch.manual_seed(3)
        real = real_of(model, volumes())
        return lambda: model.generator_loss(real), lambda: model.ground_loss(real)

    def own(model):
        return {f"{n}/{k}": p for n in TOGETHER for k, p in model.networks[n].named_parameters()}

    plain, model = joint(), joint(lean=lean, beta_1=0.5)
    total = sum(term() for term in terms(plain))
    want = dict(zip(own(plain), torch.autograd.grad(total, list(own(plain).values())), strict=True))
    for name in TOGETHER:
        model.optimisers[name].step = lambda: None  # so that the gradients can be looked at
    values = model.update(TOGETHER, Run(), *terms(model))
    assert torch.isclose(sum(values), total)
    for k, gradient in want.items():
        assert torch.allclose(own(model)[k].grad, gradient, atol=1e-6 + 1e-4 * float(gradient.abs().max())), k
    assert all(p.grad is None for n in ("D^H", "D^L", "E^H") for p in model.networks[n].parameters())


def give_posterior(model, mean, log_variance):
    """Let E^G answer with one Gaussian, whatever it sees."""
    last = model.networks["E^G"].layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([mean, log_variance]).repeat_interleave(len(last.bias) // 2))


def test_codes_are_drawn_from_the_posterior_and_cost_their_kl():
    """q = N(2, e^-2) in each of 16 elements: moments of 4,096 draws within .01, 7 standard errors; KL in closed form (Kingma)."""
    model = joint()
    give_posterior(model, 2.0, -2.0)
    torch.manual_seed(0)
    z, kl = model.codes(torch.zeros(4096, *model.features(volumes())[0].shape))
    assert abs(z.mean() - 2) < 0.01 and abs(z.std() - math.exp(-1)) < 0.01
    assert torch.isclose(kl, torch.tensor(z.shape[1] * (4 + math.exp(-2) + 2 - 1) / 2))


def test_the_loss_weighs_recovery_against_the_kl():
    """lambda (L1 + L1) + kl_weight KL: q = N(1, 1/4) in each of 16 elements."""
    model, x = joint(lam=3.0, kl_weight=0.02), volumes()
    nets, real = model.networks, real_of(model, x)
    give_posterior(model, 1.0, math.log(0.25))
    torch.manual_seed(3)
    loss = model.ground_loss(real)
    torch.manual_seed(3)
    a = nets["G^A"](1 + 0.5 * torch.randn(2, 16))
    l1 = (nets["G^H"](select_low(a, R, 4)) - real.x_r).abs().mean() + (nets["G^L"](a) - real.x_low).abs().mean()
    kl = 16 * (1 + 0.25 - math.log(0.25) - 1) / 2
    assert torch.isclose(loss, 3 * l1 + 0.02 * kl, rtol=1e-5)


def test_the_encoder_gives_the_mean():
    network = models.VariationalGround(32, 8, 2)
    a = torch.randn(3, 4, 8, 8, 8)
    mean, log_variance = network(a, posterior=True)
    assert mean.shape == log_variance.shape == (3, 8) and torch.equal(network(a), mean)
    assert torch.equal(torch.cat([mean, log_variance], 1), network.layers(a).flatten(1))


# -- phases --------------------------------------------------------------------------------------------------------------------


def test_recovery_comes_first_then_codes_are_counted_and_then_adversarial_training_begins():
    """Of ten steps three, one and six: who learns in each phase."""
    model, generator = joint(recovery_first=0.3), {"G^A", "G^H", "G^L"}
    own = {"recovery": {"E^H", "E^G"}, "counting": set(), "adversarial": {"D^H", "D^L"}}
    losses_of = {"recovery": {"e_high"}, "counting": set(), "adversarial": {"d", "g"}}
    for k in range(6):
        before = parameters(model)
        model.begin_step(k, 10)
        losses = model.step({"x": volumes()})
        moved = changed(before, parameters(model)) & {*generator, "D^H", "D^L", "E^H", "E^G"}
        assert model.phase == ("recovery", "recovery", "recovery", "counting", "adversarial", "adversarial")[k]
        assert moved == generator | own[model.phase]
        assert set(losses) == {"e_ground"} | losses_of[model.phase]


def test_without_phases_all_learn_at_every_step():
    model = joint()
    before = parameters(model)
    model.begin_step(0, 10)
    assert set(model.step({"x": volumes(1)})) == {"d", "g", "e_ground", "e_high"}
    assert {*GENERATOR, "D^H", "D^L", "E^H", "E^G"} <= changed(before, parameters(model))
    assert set(model.validate({"x": volumes(1)})) == {"d_real", "recovery_l1", "kl"}


def test_to_ask_for_a_learning_rate_changes_nothing():
    model = joint(recovery_first=0.3)
    before = parameters(model)
    assert [model.learning_rate(k, 10) for k in (0, 3, 9)] == [1e-3] * 3
    assert model.phase == "adversarial" and not changed(before, parameters(model))


def test_phases_need_one_process():
    """Each process would count the codes of its own volumes."""
    with pytest.raises(ValueError, match="recovery_first needs one process"):
        joint(recovery_first=0.5).step({"x": volumes()}, Run(processes=2))


def test_codes_are_settled_once_when_adversarial_training_begins():
    """At the first step of the phase mean and root are taken from the codes that were counted, for encoder and generators alike,
    and the counters are empty again.
    """
    model = joint(recovery_first=0.05)
    standards = {name: model.networks[name].standard for name in ("E^G", "G^A", "mean G^A")}
    for k in range(4):  # two steps of recovery, two of counting
        model.begin_step(k, 40)
        for standard in standards.values():
            assert not standard.mean.any() and torch.equal(standard.root, torch.eye(16)), k
        model.step({"x": volumes()})
    encoder = standards["E^G"]
    counted, mean = int(encoder.people), encoder.total / encoder.people
    assert counted == 4
    covariance = encoder.products / counted - torch.outer(mean, mean)
    share = 16 / (16 + 10 * counted)  # shrinkage towards a multiple of I
    covariance = (1 - share) * covariance + share * covariance.trace() / 16 * torch.eye(16)
    for k in (4, 4, 5):
        model.begin_step(k, 40)
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
    standard, mixing = models.Standard(4), torch.randn(4, 4) + 2 * torch.eye(4)
    e = torch.randn(4000, 4) @ mixing.T + 5
    assert torch.equal(standard(e), e) and torch.equal(standard.own(e), e)
    for part in e.split(100):
        standard.count(part)
    standard.settle()
    z = standard(e)
    assert z.mean(0).abs().max() < 1e-5 and (z.T.cov() - torch.eye(4)).abs().max() < 2e-3
    assert torch.allclose(standard.own(z), e, atol=1e-4)
    few = models.Standard(64)
    few.count(torch.randn(2, 64))
    few.settle()
    assert few(torch.randn(100, 64)).std() < 3


def test_settling_leaves_the_volume_of_a_code_as_it_is():
    model, x = algorithm(ConditionalJointHAGANSettings, recovery_first=0.5), volumes()
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
    history = fit(joint(recovery_first=0.5), data, data[:1], tmp_path, steps=4, validate_every=4, batch_size=2)
    assert {"d", "g", "e_ground", "e_high", "tune_kl"} <= set(history) and history.notna().all(None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training of five steps that nothing stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hagan_joint, "COUNTING", 0.4)
        return trained(tmp_path_factory.mktemp("whole"))


def trained(folder, until=None):
    """One step of recovery, two of counting, two of adversarial training."""
    model, data = joint(recovery_first=0.2, beta_1=0.5), [{"x": v} for v in volumes(3)]
    often = dict(validate_every=2, checkpoint_every=1)
    fit(model, data, data[:1], folder, steps=5, until=until, seed=0, batch_size=2, **often)
    return model


@pytest.mark.slow
# the end of recovery; within counting; before settling; within adversarial training
@pytest.mark.parametrize("until", [1, 2, 3, 4])
def test_a_killed_training_resumes_to_the_bit(tmp_path, until, whole, monkeypatch):
    monkeypatch.setattr(hagan_joint, "COUNTING", 0.4)
    trained(tmp_path, until)
    assert same_state(whole, trained(tmp_path))


@pytest.mark.parametrize("lean", [False, True])
def test_the_encoder_of_the_whole_has_its_own_rate(lean, tmp_path):
    """Adam's first step without momentum is the rate in every weight: .05 of 1e-3 for E^G, all of it for E^H."""
    model = joint(encoder_rate=0.05, lean=lean)
    before = parameters(model)
    fit(model, [{"x": v} for v in volumes()], [{"x": volumes()[0]}], tmp_path, steps=1)
    after = parameters(model)
    for name, rate in {"E^G": 5e-5, "E^H": 1e-3, "G^A": 1e-3, "D^H": 4e-3}.items():
        step = max(float((after[name][k] - v).abs().max()) for k, v in before[name].items())
        assert step == pytest.approx(rate, rel=0.01), name
        assert model.optimisers[name].param_groups[0]["lr"] == pytest.approx(rate)
