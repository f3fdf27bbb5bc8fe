"""HA-GAN as printed: parameter counts, shapes, selectors, equations (1) to (8), who learns in which update, resume."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hagan_toys import R, algorithm, changed, parameters, real_of, same_state, volumes

from medsynth_lib.models import hagan as models
from medsynth_lib.settings import HAGANSettings, WithoutEncoderSettings
from medsynth_lib.training.hagan import (
    DISCRIMINATORS,
    GENERATOR,
    HAGAN,
    draw_start,
    low_resolution,
    select_high,
    select_low,
)
from medsynth_lib.training.loop import Run, fit


@pytest.fixture
def shapes_alone(monkeypatch):
    """Spectral norms without their iterations, which take most of the time on the meta device and change no shape."""
    monkeypatch.setattr(torch.nn.utils.parametrizations._SpectralNorm, "_power_method", lambda *given: None)


def count(networks):
    with torch.device("meta"):
        return sum(p.numel() for network in networks().values() for p in network.parameters())


@pytest.mark.parametrize(
    "size, millions", [(32, 74.747780), (64, 78.672324), (128, 79.583972), (256, 79.744884), (512, 86.831036)]
)
def test_parameter_counts_are_those_of_table_viii(size, millions, shapes_alone):
    """Table VIII: 74.7, 78.7, 79.6, 79.7 million; at 128 and 256 the public models have exactly these counts."""
    assert count(lambda: models.networks(size)) == round(millions * 1e6)


@pytest.mark.parametrize("fraction", models.FRACTIONS)
@pytest.mark.parametrize("size", models.SIZES)
def test_shapes_at_every_size_and_fraction(size, fraction, shapes_alone):
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
        algorithm(size=96)
    with pytest.raises(ValueError, match="fraction 0.3"):
        algorithm(fraction=0.3)


def test_the_defaults_are_the_papers():
    """Section II-E: size, sub-volume, code, lambda, rates, beta_1, batch; nothing of the public code but the widths and steps."""
    s = HAGANSettings()
    assert (s.size, s.size * s.fraction, s.latent, s.lam, s.batch_size) == (256, 32, 1024, 5, 4)
    assert (s.learning_rate, s.learning_rate * s.discriminator_rate, s.beta_1) == (1e-4, 4e-4, 0)
    assert not s.average and not s.lean


# -- selectors -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step, expected", [(4, set(range(0, 29, 4))), (1, set(range(29)))])
def test_starts_cover_the_volume(step, expected):
    """Multiples of 4, as printed, and all slices, as in the public code."""
    torch.manual_seed(0)
    assert {draw_start(32, 4, step) for _ in range(600)} == expected


def test_a_partition_and_aligned_starts_are_told_apart():
    """At fraction 1/8 of 32 both are multiples of 4; with sub-volumes of 8 slices those of a partition never overlap."""
    torch.manual_seed(0)
    starts = [{draw_start(32, 8, step) for _ in range(600)} for step in (8, 4)]
    assert starts == [{0, 8, 16, 24}, {0, 4, 8, 12, 16, 20, 24}]


def test_aligned_selectors_cut_the_same_slices():
    """Features that are the nearest-neighbour quarter of a volume: both cuts agree for every aligned r, not for all others."""
    x = torch.arange(32.0)[None, None, :, None, None].expand(1, 1, 32, 4, 4)
    a = F.interpolate(x, scale_factor=(0.25, 1, 1))
    for r in range(0, 29, 4):
        assert torch.equal(F.interpolate(select_high(x, r, 4), scale_factor=(0.25, 1, 1)), select_low(a, r, 4))
    assert not torch.equal(F.interpolate(select_high(x, 7, 4), scale_factor=(0.25, 1, 1)), select_low(a, 7, 4))


# -- losses --------------------------------------------------------------------------------------------------------------------


def test_losses_are_equations_4_and_5():
    logits, model = (torch.tensor([[0.3], [-1.2]]), torch.tensor([[2.0], [0.1]])), algorithm()
    d = [v.sigmoid() for v in logits]
    assert torch.isclose(model.adversarial(logits, True), sum(-p.log().mean() for p in d))
    assert torch.isclose(model.adversarial(logits, False), sum(-(1 - p).log().mean() for p in d))


def test_adversarial_training_has_its_direction():
    """D wants real volumes judged real and generated ones judged fake, G wants generated ones judged real."""
    model = algorithm()
    real, generator = real_of(model, volumes()), torch.Generator().manual_seed(2)
    on_real = [torch.randn(2, 1, generator=generator) + 2 for _ in range(2)]  # of D^H and D^L
    on_fake = [torch.randn(2, 1, generator=generator) - 2 for _ in range(2)]
    model.judge = lambda x_r, x_low, r: on_real if x_r is real.x_r else on_fake
    a, b = (torch.cat(logits, 1).sigmoid() for logits in (on_real, on_fake))
    assert torch.isclose(model.real_loss(real), -a.log().sum(1).mean())
    assert torch.isclose(model.fake_loss(real), -(1 - b).log().sum(1).mean())
    assert torch.isclose(model.generator_loss(real), -b.log().sum(1).mean())


def test_reconstruction_losses_are_equations_6_and_7():
    model, x = algorithm(), volumes()
    nets, real = model.networks, real_of(model, x)
    x_r, x_low = select_high(x, R, 4), x[:, :, ::4, ::4, ::4]
    high = (nets["G^H"](nets["E^H"](x_r)) - x_r).abs().mean()
    assert torch.isclose(model.high_loss(real), 5 * high)
    a = nets["G^A"](nets["E^G"](torch.cat([nets["E^H"](part) for part in x.split(4, 2)], 2)))
    ground = (nets["G^L"](a) - x_low).abs().mean() + (nets["G^H"](select_low(a, R, 4)) - x_r).abs().mean()
    assert torch.isclose(model.ground_loss(real), 5 * ground)


def test_what_is_validated():
    """The mean logit of D^H for the middle sub-volume, and the error of whole volumes from their codes."""
    model, x = algorithm(), volumes()
    for network in model.networks.values():
        network.eval()
    nets, r = model.networks, 12
    with torch.no_grad():
        found = model.validate({"x": x})
        a_hat = torch.cat([nets["E^H"](part) for part in x.split(4, 2)], 2)
        again = nets["G^H"](nets["G^A"](nets["E^G"](a_hat)))
        assert torch.isclose(found["d_real"], nets["D^H"](select_high(x, r, 4), r / 28).mean())
    assert torch.isclose(found["recovery_l1"], (again - x).abs().mean()) and len(found) == 2


# -- updates -------------------------------------------------------------------------------------------------------------------


def test_every_update_moves_its_own_networks_alone():
    model = algorithm()
    real = real_of(model, volumes())
    updates = {
        DISCRIMINATORS: (lambda: model.real_loss(real), lambda: model.fake_loss(real)),
        GENERATOR: (lambda: model.generator_loss(real),),
        ("E^H",): (lambda: model.high_loss(real),),
        ("E^G",): (lambda: model.ground_loss(real),),
    }
    for names, terms in updates.items():
        before = parameters(model)
        model.update(names, Run(), *terms)
        means = {f"mean {name}" for name in names} & set(model.networks)  # they follow in the generator's update
        assert changed(before, parameters(model)) == {*names, *means}
        others = [p for n in model.optimisers if n not in names for p in model.networks[n].parameters()]
        assert all(p.grad is None for p in others)


def test_an_iteration_has_four_updates_in_the_printed_order():
    model, asked = algorithm(average=0.0), []
    assert type(model).__mro__[1] is HAGAN  # nothing but the printed class

    def update(names, run, *terms):
        asked.append(names)
        return [torch.zeros(())] * len(terms)

    model.update = update
    assert list(model.step({"x": volumes()})) == ["d", "g", "e_high", "e_ground"]
    assert asked == [("D^H", "D^L"), ("G^A", "G^L", "G^H"), ("E^H",), ("E^G",)]


def test_as_printed_the_encoder_never_reaches_the_generator():
    """Equations (6), (7) move E^H and E^G alone: the generator is the same to the bit without them (section II-C)."""

    def after_three_steps(kind):
        model = algorithm(kind, average=0.0)
        for k in range(3):
            torch.manual_seed(k)
            model.step({"x": volumes()})
        return {name: net for name, net in parameters(model).items() if name in GENERATOR}

    assert not changed(after_three_steps(WithoutEncoderSettings), after_three_steps(HAGANSettings))


def test_discriminators_learn_four_times_as_fast(tmp_path):
    model = algorithm()
    fit(model, [{"x": v} for v in volumes()], [{"x": volumes()[0]}], tmp_path, steps=1)
    rates = {name: optimiser.param_groups[0]["lr"] for name, optimiser in model.optimisers.items()}
    assert all(rate == pytest.approx(4e-3 if name.startswith("D") else 1e-3) for name, rate in rates.items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training of five steps that nothing stopped."""
    return trained(algorithm(), tmp_path_factory.mktemp("whole"))


def trained(model, folder, until=None):
    data = [{"x": v} for v in volumes(3)]
    often = dict(validate_every=2, checkpoint_every=1)
    fit(model, data, data[:1], folder, steps=5, until=until, seed=0, batch_size=2, **often)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("until", [1, 3])
def test_a_killed_training_resumes_to_the_bit(tmp_path, until, whole):
    parts = trained(algorithm(), tmp_path, until)
    assert same_state(whole, trained(algorithm(), tmp_path)) and not same_state(whole, parts)


# -- running mean --------------------------------------------------------------------------------------------------------------


def test_the_running_mean_is_one():
    model = algorithm()
    before = parameters(model)
    model.step({"x": volumes()})
    after = parameters(model)
    for name in GENERATOR:
        for k, old in before[f"mean {name}"].items():
            assert torch.allclose(after[f"mean {name}"][k], 0.9 * old + 0.1 * after[name][k], atol=1e-6)


def test_a_running_mean_is_not_trained():
    model = algorithm()
    assert not any(
        p.requires_grad for n, net in model.networks.items() if n.startswith("mean") for p in net.parameters()
    )
    assert set(model.optimisers) == {"G^A", "G^L", "G^H", "D^H", "D^L", "E^H", "E^G"}
    assert copy.deepcopy(model.networks["mean G^H"]).state_dict().keys() == model.networks["G^H"].state_dict().keys()


def test_low_resolution_takes_every_fourth_voxel():
    x = volumes()
    assert torch.equal(low_resolution(x), x[:, :, ::4, ::4, ::4])
