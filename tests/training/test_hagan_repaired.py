"""HA-GAN's remedies: changed views, and the discriminator of the batch."""

import pytest
import torch
from hagan_toys import algorithm, changed, parameters, real_of, volumes

from medsynth_lib.models.hagan_batch import DiscriminatorBatch
from medsynth_lib.settings import RepairedHAGANSettings, RepairedJointHAGANSettings
from medsynth_lib.training.hagan import DISCRIMINATORS, low_resolution
from medsynth_lib.training.hagan_repaired import augment
from medsynth_lib.training.loop import Run

FORMS = [RepairedHAGANSettings, RepairedJointHAGANSettings]
GAME = dict(recovery_first=0.0)  # the joint form without its first phases


def repaired(kind=RepairedHAGANSettings, **changes):
    return algorithm(kind, **(GAME if kind is RepairedJointHAGANSettings else {}) | changes)


@pytest.mark.parametrize("seed", range(8))
def test_both_views_change_alike(seed):
    """The low-resolution volume of a changed volume is the changed low-resolution volume, with and without a hole."""
    x = volumes(1)[0]
    torch.manual_seed(seed)
    high, low = augment(x, low_resolution(x[None])[0])
    assert torch.equal(low_resolution(high[None])[0], low) and not torch.equal(high, x)


def test_a_change_is_linear_in_the_volume_and_keeps_the_first_axis():
    """Its gradient is the contrast, .8 to 1.2; in half of the draws it is 0 in a square of a third of the plane."""
    holes = 0
    for seed in range(200):
        x = torch.zeros(1, 4, 32, 32, requires_grad=True)
        torch.manual_seed(seed)
        high, _ = augment(x, torch.zeros(1, 8, 8, 8))
        (gradient,) = torch.autograd.grad(high.sum(), x)
        factors = gradient.unique()
        assert 0.8 <= factors[-1] <= 1.2 and len(factors) <= 2
        if len(factors) == 2:
            holes += 1
            assert factors[0] == 0 and (gradient == 0).sum() == 4 * 12 * 12  # three of eight low-resolution voxels
        assert (gradient == gradient[:, :1]).all()  # no slice differs from another
    assert 80 < holes < 120


def test_the_volume_moves_within_the_plane_by_at_most_a_tenth():
    places = set()
    for seed in range(200):
        x = torch.full((1, 4, 40, 40), -1.0)
        x[..., 20, 20] = 1
        torch.manual_seed(seed)
        high, _ = augment(x, torch.zeros(1, 10, 10, 10))
        where = (high[0, 0] == high.max()).nonzero()
        if len(where) == 1:  # else the hole has taken it, or is brighter than it
            places.add(tuple((where[0] - 20).tolist()))
    assert {abs(v) for place in places for v in place} == {0, 4} and len(places) == 9


@pytest.mark.parametrize("kind", FORMS)
def test_volumes_are_changed_in_training_alone(kind):
    model = repaired(kind)
    real = real_of(model, volumes())

    def logits():
        with torch.no_grad():
            return model.judge(real.x_r, real.x_low, real.r)

    for network in model.networks.values():
        network.eval()
    (h1, l1, b1), (h2, l2, b2) = logits(), logits()
    assert torch.equal(h1, h2) and torch.equal(l1, l2) and torch.equal(b1, b2) and b1.shape == (1, 1)
    model.networks["D^H"].train()
    (h3, l3, b3), (h4, l4, b4) = logits(), logits()
    assert not torch.equal(h3, h4) and not torch.equal(l3, l4) and torch.equal(b3, b4)  # D^B sees them as they are


def test_each_remedy_can_be_left_out():
    plain = repaired(augmented=False, batch_discriminator=False)
    assert "D^B" not in plain.networks
    model = repaired(augmented=False)
    real = real_of(model, volumes())
    *volumes_logits, batch = model.judge(real.x_r, real.x_low, real.r)
    both = torch.cat([logit.flatten() for logit in volumes_logits])
    want = -both.sigmoid().log().view(2, -1).mean(1).sum() - batch.sigmoid().log().sum()
    assert torch.isclose(model.adversarial((*volumes_logits, batch), True), want)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("lean", [False, True])
def test_the_batch_discriminator_learns_with_the_others_and_faster_than_the_generator(kind, lean):
    model = repaired(kind, lean=lean)
    groups = model.optimisers["D^B"].param_groups
    assert groups[0]["rate"] == model.settings.discriminator_rate
    before = parameters(model)
    real = real_of(model, volumes())

    model.update(DISCRIMINATORS, Run(), lambda: model.real_loss(real), lambda: model.fake_loss(real))
    assert {"D^B", "D^H", "D^L"} == changed(before, parameters(model))


def test_the_batch_discriminator_tells_a_collapsed_generator():
    """After 60 steps its logit of different volumes is positive, of equal ones negative; and G's gradient spreads a batch."""
    torch.manual_seed(0)
    network = DiscriminatorBatch(32)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for k in range(60):
        many = torch.randn(4, 1, 8, 8, 8, generator=torch.Generator().manual_seed(k))
        same = many[:1].expand(4, -1, -1, -1, -1) + 0.05 * many
        optimiser.zero_grad()
        loss = torch.nn.functional.softplus(-network(many)) + torch.nn.functional.softplus(network(same))
        loss.sum().backward()
        optimiser.step()
    assert network(many) > 0 > network(same)
    same = same.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.nn.functional.softplus(-network(same)).sum(), same)
    moved = same - 10 * gradient / gradient.norm()
    assert network(moved) > network(same) and moved.std(0).mean() > same.std(0).mean()


def test_volumes_that_agree_have_a_gradient_of_zero_not_infinity():
    x = torch.full((3, 1, 8, 8, 8), -1.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(DiscriminatorBatch(32)(x).sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("size, weights", [(32, 520 + 8_208 + 129), (64, 520 + 8_208 + 1_025), (256, 8_728 + 65_537)])
def test_weights_of_the_batch_discriminator(size, weights):
    assert sum(p.numel() for p in DiscriminatorBatch(size).parameters()) == weights
