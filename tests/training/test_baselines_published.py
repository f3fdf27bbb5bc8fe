"""What the public code of the baselines does otherwise: closed forms, and which networks learn from what."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medsynth_lib import settings as lessons
from medsynth_lib.training import baselines_published as published
from medsynth_lib.training.baselines import PENALTY

SMALL = dict(size=16, latent=8, width=2, widest=8, learning_rate=1e-3)


def make(name):
    torch.manual_seed(0)
    kind = getattr(published, f"Published{name}")
    return kind(getattr(lessons, f"Published{name}Settings")(**SMALL))


def volumes(b=2):
    return torch.rand(b, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def values(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("name", ["WGAN", "VAEGAN", "AlphaGAN"])
def test_a_step_changes_every_network_and_losses_are_finite(name):
    model = make(name)
    before = {n: values(network) for n, network in model.networks.items()}
    losses = model.step({"x": volumes()})
    assert all(torch.isfinite(loss) and not loss.requires_grad for loss in losses.values())
    assert all(not torch.equal(before[n], values(network)) for n, network in model.networks.items())


def test_the_penalty_draws_the_gradient_of_each_voxel_to_1():
    """D(x) = w x: the mean of (|w_v| - 1)^2 over voxels, and not (|w| - 1)^2."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    torch.nn.init.normal_(critic[1].weight)
    x = torch.randn(3, 1, 4, 4, 4)
    w = critic[1].weight.detach()
    assert torch.isclose(published.voxelwise_penalty(critic, x, x + 1), (w.abs() - 1).square().mean(), rtol=1e-5)


def test_wgan_has_eight_scores_and_five_generator_steps():
    model = make("WGAN")
    assert model.networks["D"](volumes()).shape == (2, 8)
    model.step({"x": volumes()})
    steps = {n: {int(s["step"]) for s in o.state.values()} for n, o in model.optimisers.items()}
    assert steps == {"D": {1}, "G": {5}}


def test_a_generator_step_of_wgan_raises_the_score_of_its_samples():
    model = make("WGAN")
    x = volumes(4)

    def score():
        torch.manual_seed(5)
        with torch.no_grad():
            return model.score(model.sample(x)).mean()

    before = score()
    torch.manual_seed(5)
    model.update(("G",), lambda: -model.score(model.sample(x)).mean())
    assert score() > before


def test_the_code_critic_learns_from_noise_and_the_penalty_alone():
    """A constant code moves no gradient of C but the penalty's: with weights whose penalty is 0 the loss is -C(noise)."""
    model, x = make("AlphaGAN"), volumes()
    direction = F.normalize(torch.randn(1, 8), dim=1)
    critic = nn.Linear(8, 1)
    critic.weight.data, critic.bias.data = direction, torch.zeros(1)
    model.networks["C"] = critic
    torch.manual_seed(3)
    loss = model.code_loss(x)
    torch.manual_seed(3)
    assert torch.isclose(loss, -(model.noise(x) @ direction.T).mean(), atol=PENALTY * 1e-5)


def test_alpha_gan_applies_a_gradient_of_g_twice():
    model = make("AlphaGAN")
    model.step({"x": volumes()})
    steps = {n: {int(s["step"]) for s in o.state.values()} for n, o in model.optimisers.items()}
    assert steps == {"G": {2}, "E": {1}, "D": {1}, "C": {1}}


def test_the_loss_of_vae_gan_saturates_and_has_the_right_sign():
    """d/ds of log(1 - sigmoid(s)) is -sigmoid(s): it draws the logit s up, hardly where D is sure, s = -10."""
    model, x = make("VAEGAN"), volumes()
    model.networks["G"] = nn.Identity()
    model.sample = lambda x: x
    model.draw = lambda mean, log_variance: x
    for logit in (-10.0, 0.0):
        s = torch.full((2, 1), logit, requires_grad=True)
        model.score = lambda x, s=s: s
        loss = model.generator_loss(x)  # the recovered volumes are x: no error of voxels
        (gradient,) = torch.autograd.grad(loss, s)
        assert gradient.allclose(-torch.full((2, 1), logit).sigmoid())  # of two terms, each a mean of two


def test_vae_gan_compares_voxels():
    model, x = make("VAEGAN"), volumes()
    assert torch.isclose(model.likeness(x, x + 0.5), torch.tensor(0.25))
