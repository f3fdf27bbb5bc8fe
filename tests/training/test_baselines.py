"""The baselines: shapes, closed forms of their losses, the growing of Progressive GAN, what a step changes, batches of one."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medsynth_lib.models import baselines as models
from medsynth_lib.settings import settings_class
from medsynth_lib.training.baselines import ALGORITHMS, gradient_penalty
from medsynth_lib.training.loop import fit

SMALL = dict(latent=8, width=2, widest=8, learning_rate=1e-3)
KWON = ("WGAN", "VAE-GAN", "alpha-GAN")

every = pytest.mark.parametrize("name", ALGORITHMS)


def make(name, size=16, seed=0, **changes):
    torch.manual_seed(seed)
    return ALGORITHMS[name](settings_class(name)(**SMALL | dict(size=size) | changes))


def volumes(b=2, size=16, seed=1):
    return torch.rand(b, 1, size, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def count(network):
    return sum(p.numel() for p in network.parameters())


# -- networks ------------------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("b", [1, 2])
def test_shapes(name, size, b):
    nets = make(name, size).networks
    x = nets["G"](torch.randn(b, 8))
    assert x.shape == (b, 1, size, size, size) and nets["D"](x).shape == (b, 1)
    assert name == "Progressive GAN" or x.abs().max() <= 1
    if name == "alpha-GAN":
        assert nets["E"](x).shape == (b, 8) and nets["C"](nets["E"](x)).shape == (b, 1)
    if name == "VAE-GAN":
        assert [part.shape for part in nets["E"](x)] == [(b, 8)] * 2


def test_published_widths():
    """At 64^3 the layers of Kwon et al.; a doubling of the size adds a level, 32^3 has one less."""
    assert models.widths(64) == [512, 256, 128, 64]
    assert models.widths(32) == [256, 128, 64] and models.widths(256) == [512, 512, 512, 256, 128, 64]
    assert models.widths(256, 16) == [512, 256, 128, 64, 32, 16]
    for size in (48, 4):
        with pytest.raises(ValueError, match="power of two"):
            models.widths(size)


def test_published_parameters():
    """By hand at 64^3, without the biases that a batch norm makes useless: Kwon et al. have 1000-512-256-128-64-1."""
    with torch.device("meta"):
        g, d = models.Generator(), models.Critic()
    kernels = 1000 * 512 * 64 + 27 * (512 * 256 + 256 * 128 + 128 * 64 + 64)
    assert count(g) == kernels + 3 * (512 + 256 + 128 + 64) + 1  # bias, and weight and bias of the norm
    kernels = 64 * (64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    assert count(d) == kernels + 64 + 3 * (128 + 256 + 512) + 1


def test_every_size_can_be_built():
    """Without numbers: up to 512^3, where the finest level keeps its width."""
    for name in ALGORITHMS:
        with torch.device("meta"):
            counts = [sum(map(count, make(name, size).networks.values())) for size in (32, 64, 128, 256, 512)]
        assert counts == sorted(counts)


def test_equalised_layers_keep_the_scale():
    """N(0, 1) inputs and sqrt(2 / n) weights: outputs of variance 2, whatever the number of inputs."""
    torch.manual_seed(0)
    for c in (2, 32):
        layer = models.EqualConv3d(c, 64, 3)
        assert float(layer(torch.randn(20, c, 6, 6, 6)).detach().var()) == pytest.approx(2, rel=0.1)


def test_pixel_norm():
    x = torch.randn(2, 5, 3, 3, 3)
    assert models.PixelNorm()(x).square().mean(1).allclose(torch.ones(()), atol=1e-5)
    assert models.PixelNorm()(7 * x).allclose(models.PixelNorm()(x), atol=1e-5)


def test_critic_sees_how_much_a_batch_differs():
    """A batch of copies has no spread; the scores of Progressive GAN's critic change with the company of a volume."""
    critic, x = make("Progressive GAN").networks["D"], volumes(2)
    copies = critic(torch.cat([x[:1], x[:1]]))
    assert copies.allclose(critic(x[:1]), atol=1e-6) and not critic(x)[:1].allclose(copies[:1], atol=1e-6)


# -- closed forms --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [0.0, 1.0, 3.0])
def test_gradient_penalty_of_a_linear_critic(norm):
    """D(x) = w x has the gradient w everywhere: (|w| - 1)^2, whose gradient in w is 2 (|w| - 1) w / |w|."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    direction = F.normalize(torch.randn(1, 64), dim=1)
    critic[1].weight.data = norm * direction
    penalty = gradient_penalty(critic, *torch.randn(2, 3, 1, 4, 4, 4))
    assert float(penalty) == pytest.approx((norm - 1) ** 2, abs=1e-4)
    penalty.backward()
    if norm:
        assert critic[1].weight.grad.allclose(2 * (norm - 1) * direction, atol=1e-4)


def test_gradient_penalty_is_taken_between_real_and_fake():
    """D(x) = sum x^2 / 2 has the gradient x: with real = a and fake = b everywhere, |gradient| lies between theirs."""
    real, fake = torch.full((2000, 1, 2, 2, 2), 2.0), torch.full((2000, 1, 2, 2, 2), 4.0)
    found = float(gradient_penalty(lambda x: x.square().sum((1, 2, 3, 4)) / 2, real, fake))
    r = math.sqrt(8)  # |x| = r t, t uniform in [2, 4]: mean of (r t - 1)^2
    assert found == pytest.approx(r * r * (64 - 8) / 6 - 2 * r * 3 + 1, rel=0.02)


def test_losses_of_wgan():
    algorithm, x = make("WGAN"), volumes()
    algorithm.score = lambda volume: 3 * volume.flatten(1).mean(1, keepdim=True)
    slope = 3 / math.sqrt(16**3)  # the gradient's length
    torch.manual_seed(2)
    loss = algorithm.critic_loss(x)
    torch.manual_seed(2)
    expected = 3 * (algorithm.sample(x).mean() - x.mean()) + 10 * (slope - 1) ** 2
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-4)


def test_losses_of_alpha_gan():
    """With networks that are constants: -D - D - C + 10 |x - x'|; the critics as WGAN's, with two kinds of fakes."""
    algorithm, x = make("alpha-GAN"), volumes()
    again = 0.5 * torch.ones_like(x)
    algorithm.networks = {
        "E": lambda x: torch.zeros(len(x), 8),
        "G": lambda z: again,
        "D": lambda v: v.flatten(1).mean(1, keepdim=True),
        "C": lambda z: 2 + z.mean(1, keepdim=True),
    }
    expected = -0.5 - 0.5 - 2 + 10 * (x - again).abs().mean()
    assert float(algorithm.generator_loss(x)) == pytest.approx(float(expected), abs=1e-5)
    expected = 2 * (0.5 - x.mean() + 10 * (1 / math.sqrt(16**3) - 1) ** 2)
    assert float(algorithm.critic_loss(x).detach()) == pytest.approx(float(expected), abs=1e-4)


def test_losses_of_vae_gan():
    """KL of known Gaussians, (mu^2 + sigma^2 - 1 - log sigma^2) / 2 a number; with D at chance every term is log 2."""
    algorithm, x = make("VAE-GAN"), volumes()
    posterior = torch.full((2, 8), 1.5), torch.full((2, 8), math.log(0.25))
    nets = algorithm.networks
    algorithm.networks = {"E": lambda x: posterior, "G": lambda z: x, "D": nets["D"]}
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(1.5, 0.5), torch.distributions.Normal(0.0, 1.0))
    nets["D"].eval()  # the recovery is the volume itself: no other term
    assert float(algorithm.encoder_loss(x).detach()) == pytest.approx(float(kl), rel=1e-5)
    algorithm.score = lambda volume: torch.zeros(len(volume), 1)
    assert float(algorithm.critic_loss(x)) == pytest.approx(3 * math.log(2), rel=1e-5)
    assert float(algorithm.generator_loss(x)) == pytest.approx(2 * math.log(2), rel=1e-5)


def told_apart(name):
    """The losses of one step, and who learns by each, where every kind of volume has its own value and its own score: real ones
    1/4 and 2, samples -1/2 and -2, recoveries 3/4 and -1. All scores are flat, so that a penalty is 10; features are 3 x.
    """
    algorithm, x = make(name), torch.full((2, 1, 16, 16, 16), 0.25)
    kinds = {0.25: 2.0, -0.5: -2.0, 0.75: -1.0}

    def score(v):
        return kinds.get(float(v.detach().mean()), 0.0) + 0 * v.flatten(1).mean(1, keepdim=True)

    mean = torch.full((2, 8), 5.0)  # far from noise
    algorithm.score, algorithm.update = score, lambda names, loss, run: (names, float(loss()))
    algorithm.networks = {
        "G": lambda z, *stage: torch.full_like(x, 0.75 if z.mean() > 2 else -0.5),
        "E": lambda v: (mean, torch.full_like(mean, math.log(0.25))) if name == "VAE-GAN" else mean,
        "C": lambda z: 3 / math.sqrt(8) * z.sum(1, keepdim=True),  # a slope of 3
        "D": nn.Identity(),
    }
    algorithm.networks["D"].features = lambda v: 3 * v
    algorithm.stage = lambda: (2, 1.0)  # Progressive GAN's last
    torch.manual_seed(2)
    losses = algorithm.step({"x": x})
    return {k: names for k, (names, _) in losses.items()}, {k: value for k, (_, value) in losses.items()}


def test_direction_of_wgan():
    """The critic raises real volumes over samples, the generator raises samples."""
    names, losses = told_apart("WGAN")
    assert names == {"d": ("D",), "g": ("G",)}
    assert losses == pytest.approx({"d": 10 - (2 + 2), "g": 2}, abs=1e-4)


def test_direction_of_alpha_gan(monkeypatch):
    """D raises real volumes over samples and recoveries, each with a penalty; C raises noise over codes, with 10 (3 - 1)^2;
    generator and encoder raise samples, recoveries and codes, and |1/4 - 3/4| weighs 10.
    """
    noise = torch.linspace(-1, 1, 16).view(2, 8) - 0.5
    monkeypatch.setattr(ALGORITHMS["alpha-GAN"], "noise", lambda self, x: noise)
    names, losses = told_apart("alpha-GAN")
    of_noise, of_code = (3 / math.sqrt(8) * 8 * level for level in (-0.5, 5.0))
    assert names == {"g": ("G", "E"), "d": ("D",), "c": ("C",)}
    assert losses["d"] == pytest.approx(2 * 10 - (2 + 2) - (2 + 1), abs=1e-4)
    assert losses["c"] == pytest.approx(10 * (3 - 1) ** 2 - of_noise + of_code, abs=1e-3)
    assert losses["g"] == pytest.approx(10 * 0.5 + 2 + 1 - of_code, abs=1e-4)


def test_direction_of_vae_gan():
    """D judges real volumes real, samples and recoveries fake; the generator wants both judged real, and the squared error of
    features, (3/2)^2, weighs 20; for the encoder it weighs 10, beside the KL of N(5, 1/4), and there is no D to fool.
    """
    names, losses = told_apart("VAE-GAN")
    real = {score: -math.log(1 / (1 + math.exp(-score))) for score in (2, -2, -1)}  # -log sigma
    no = {score: -math.log(1 - 1 / (1 + math.exp(-score))) for score in (-2, -1)}  # -log (1 - sigma)
    kl = (25 + 0.25 - math.log(0.25) - 1) / 2
    assert names == {"d": ("D",), "g": ("G",), "e": ("E",)}
    expected = {"d": real[2] + no[-2] + no[-1], "g": 20 * 1.5**2 + real[-2] + real[-1], "e": kl + 10 * 1.5**2}
    assert losses == pytest.approx(expected, abs=1e-4)


def test_drift_of_progressive_gan():
    """.001 of the mean squared score of real volumes: of 1 and 3 it is 5, while the mean's square and the fakes' are 4."""
    names, losses = told_apart("Progressive GAN")
    assert names == {"d": ("D",), "g": ("G",)}
    assert losses == pytest.approx({"d": 10 - (2 + 2) + 0.001 * 2**2, "g": 2}, abs=1e-4)
    algorithm, x = make("Progressive GAN"), volumes()
    real = torch.tensor([[1.0], [3.0]])
    algorithm.score = lambda v: (real if v is x else -2) + 0 * v.flatten(1).mean(1, keepdim=True)
    assert float(algorithm.critic_loss(x).detach()) == pytest.approx(10 - (2 + 2) + 0.001 * 5, abs=1e-4)


# -- growing -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_fading_in_is_a_convex_combination(alpha):
    """Generator and critic: (1 - alpha) of the path without the new layers and alpha of the one with them."""
    nets = make("Progressive GAN").networks
    z = torch.randn(2, 8)
    mixed, old, new = nets["G"](z, 2, alpha), models.twice(nets["G"](z, 1)), nets["G"](z, 2)
    assert mixed.allclose((1 - alpha) * old + alpha * new, atol=1e-5) and not old.allclose(new, atol=1e-2)
    critic, x = make("Progressive GAN", 8).networks["D"], volumes(2, 8)
    critic.judge = lambda features: features  # of the one block that all stages share: linear up to here
    old, new = critic(F.avg_pool3d(x, 2), 0), critic(x, 1)
    assert critic(x, 1, alpha).allclose((1 - alpha) * old + alpha * new, atol=1e-5) and not old.allclose(new, atol=1e-2)


def test_stages_share_the_training():
    """16^3 has three stages: 4^3, then 8^3 and 16^3, each fading in during its first half."""
    algorithm = make("Progressive GAN")
    assert algorithm.stage() == (2, 1.0)  # what the accountant sees
    expected = {0: (0, 1.0), 39: (1, 0.0), 0.5 * 39 + 39: (1, 1.0), 78 + 9.75: (2, 0.5), 117: (2, 1.0)}
    for step, (stage, alpha) in expected.items():
        algorithm.begin_step(step, 117)
        assert algorithm.stage() == (stage, pytest.approx(alpha))
    for progress, size in ((0, 4), (0.5, 8), (0.9, 16)):
        algorithm.progress = progress
        assert algorithm.at_stage(volumes()).shape[-1] == algorithm.sample(volumes()).shape[-1] == size


def test_real_volumes_fade_in():
    algorithm, x = make("Progressive GAN"), volumes()
    algorithm.progress = 2 / 3 + 1e-9  # alpha 0: no detail that the stage before lacks
    assert algorithm.at_stage(x).allclose(models.twice(F.avg_pool3d(x, 2)), atol=1e-5)


# -- steps ---------------------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("b", [1, 2])
def test_a_step_is_finite_and_moves_every_network(name, b):
    algorithm = make(name)
    before = {k: [p.clone() for p in n.parameters()] for k, n in algorithm.networks.items()}
    for _ in range(2):
        losses = algorithm.step({"x": volumes(b)})
    assert set(losses) == {"WGAN": {"d", "g"}, "VAE-GAN": {"d", "g", "e"}, "alpha-GAN": {"d", "g", "c"}}.get(
        name, {"d", "g"}
    )
    assert all(torch.isfinite(v) and not v.requires_grad for v in losses.values())
    for k, network in algorithm.networks.items():
        assert any(not torch.equal(p, q) for p, q in zip(network.parameters(), before[k], strict=True)), k


LOSSES = [
    *[(name, "D", "critic_loss") for name in ALGORITHMS],
    ("VAE-GAN", "G", "generator_loss"),
    ("VAE-GAN", "E", "encoder_loss"),
    ("alpha-GAN", "G E", "generator_loss"),
    ("alpha-GAN", "C", "code_loss"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, nets, loss", LOSSES)
def test_a_loss_falls_as_its_networks_learn(name, nets, loss):
    """Twenty steps of the networks that the loss is for; the others keep their weights and have no gradients."""
    algorithm, x, nets = make(name), volumes(), tuple(nets.split())

    def seeded():
        torch.manual_seed(3)
        return getattr(algorithm, loss)(x)

    before = {k: [p.clone() for p in n.parameters()] for k, n in algorithm.networks.items()}
    values = [float(algorithm.update(nets, seeded)) for _ in range(20)]
    assert values[-1] < values[0] - 0.01 * abs(values[0])
    for k, network in algorithm.networks.items():
        unchanged = [torch.equal(p, q) for p, q in zip(network.parameters(), before[k], strict=True)]
        assert k in nets or all(unchanged) and all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize("name", ["WGAN", "Progressive GAN"])
def test_a_generator_learns_what_the_critic_likes(name):
    algorithm = make(name)
    algorithm.score = lambda x: x.mean((1, 2, 3, 4)).unsqueeze(1)
    values = [
        float(algorithm.update(("G",), lambda: -algorithm.score(algorithm.sample(volumes())).mean())) for _ in range(20)
    ]
    assert values[-1] < values[0] - 0.02


@pytest.mark.parametrize("name", ["alpha-GAN", "Progressive GAN"])
def test_the_loop_trains_and_resumes_them(name, tmp_path):
    """Stopped after two of four steps and resumed: the same bits, and the same stage, as without a stop."""
    data = [{"x": v} for v in volumes(3)]
    run = dict(steps=4, seed=5, batch_size=1, validate_every=2, checkpoint_every=2)
    whole, parts = make(name), make(name)
    fit(whole, data, data[:1], tmp_path / "whole", **run)
    fit(parts, data, data[:1], tmp_path / "parts", **run, until=2)
    again = make(name, seed=9)
    history = fit(again, data, data[:1], tmp_path / "parts", **run)
    assert list(history["step"]) == [2, 4] and "tune_d_real" in history
    for k, network in whole.networks.items():
        other = again.networks[k].state_dict()
        assert all(torch.equal(v, other[key]) for key, v in network.state_dict().items()), k


@every
def test_the_lean_form_is_the_same_mathematics(name):
    """Losses and the generator's weights after two steps of plain descent, to rounding. Adam would enlarge gradients of 0."""
    models = [make(name, lean=lean) for lean in (False, True)]
    for model in models:
        model.optimisers = {n: torch.optim.SGD(net.parameters(), 1e-2) for n, net in model.networks.items()}
    for k in range(2):
        losses = []
        for model in models:
            torch.manual_seed(k)
            losses.append(model.step({"x": volumes()}))
        for key, value in losses[0].items():
            assert value.allclose(losses[1][key], rtol=1e-3, atol=1e-5), key
    plain, lean = (torch.cat([p.detach().flatten() for p in model.networks["G"].parameters()]) for model in models)
    assert (plain - lean).norm() < 1e-5 * plain.norm()
