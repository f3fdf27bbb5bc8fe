"""The baselines of section IV: WGAN, VAE-GAN, alpha-GAN and Progressive GAN in 3D, each network one step a step.

Unlike HA-GAN they see whole volumes at every step, so that their memory grows with S^3. The memory study accounts their
steps. No shipped model comes from them. Scores of critics are (b, 1); losses are means over the batch.

The public code of Kwon et al. differs: it takes five steps of WGAN's generator, and two of alpha-GAN's, for one of the critic.
Its VAE-GAN minimises log(1 - D(fake)); here it is the non-saturating form.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsynth_lib.models import baselines as models
from medsynth_lib.models.hagan_lean import make_lean
from medsynth_lib.settings import BaselineSettings
from medsynth_lib.training.hagan import bce
from medsynth_lib.training.loop import Algorithm, Batch, Losses, Run
from medsynth_lib.training.svae import gaussian_kl

VERSION = 1  # raise when the mathematics below changes: artefacts of another version are not reused
PENALTY = 10.0  # weight of the gradient penalty
RECOVERY = 10.0  # of alpha-GAN's L1
ENCODER_WEIGHT, GENERATOR_WEIGHT = 10.0, 20.0  # of VAE-GAN's reconstruction, in the public code of Kwon et al.


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    r"""Return $(\|\nabla D(\hat x)\|_2 - 1)^2$ at $\hat x = u x + (1 - u) \tilde x$, u uniform.

    Gulrajani et al. 2017.

    Args:
        critic: gives scores (b, 1).
        real, fake: x and x-tilde, of one shape.
    """
    u = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device)
    between = (u * real + (1 - u) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return ((gradient.flatten(1).square().sum(1) + 1e-12).sqrt() - 1).square().mean()


class WGAN(Algorithm):
    """Critic: D(fake) - D(real) + 10 x penalty; generator: -D(fake).

    Samples hold "x" (1, S, S, S) in [-1, 1].
    """

    settings: BaselineSettings
    reads = ("x",)
    betas = (0.9, 0.999)  # Adam's; Kwon et al. leave the defaults
    drift = 0.0  # weight of the squared score of real volumes

    def __init__(self, settings: BaselineSettings) -> None:
        self.settings = settings
        self.networks = self.build(settings.size, settings.latent, settings.width, settings.widest)
        if settings.lean:
            self.make_lean()
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), settings.learning_rate, betas=self.betas)
            for name, network in self.networks.items()
        }

    def build(self, size: int, latent: int, width: int, widest: int) -> dict[str, nn.Module]:
        """Make the networks; arguments as in `models.baselines`."""
        return {
            "G": models.Generator(size, latent, width, widest),
            "D": models.Critic(size, 1, width, widest),
        }

    def make_lean(self) -> None:
        """Bring generator and encoder into the lean form.

        It has no second derivatives, which D's penalty needs.
        """
        for name, network in self.networks.items():
            network.to(memory_format=torch.channels_last_3d)
            if name in ("G", "E"):
                make_lean(network)

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Update, in this order: 1. D, 2. G."""
        x = batch["x"]
        return {
            "d": self.update(("D",), lambda: self.critic_loss(x), run),
            "g": self.update(("G",), lambda: -self.score(self.sample(x)).mean(), run),
        }

    def update(self, names: tuple[str, ...], loss: Callable[[], Tensor], run: Run = Run()) -> Tensor:
        """Compute a loss with only these networks in need of gradients, and take their step."""
        for name in self.networks:
            self.networks[name].requires_grad_(name in names)
            self.optimisers[name].zero_grad(set_to_none=True)
        value = loss()
        run.backward(value)
        for name in names:
            self.optimisers[name].step()
        return value.detach()

    def noise(self, x: Tensor) -> Tensor:
        """Draw a code (b, latent) ~ N(0, I) for each volume."""
        return torch.randn(len(x), self.settings.latent, device=x.device)

    def sample(self, x: Tensor) -> Tensor:
        """Generate as many volumes as there are real ones."""
        return self.networks["G"](self.noise(x))

    def score(self, x: Tensor) -> Tensor:
        """Return the critic's scores (b, 1) of volumes."""
        return self.networks["D"](x)

    def critic_loss(self, x: Tensor) -> Tensor:
        """Return what D minimises on real volumes and samples."""
        with torch.no_grad():
            fake = self.sample(x)
        return self.wasserstein(self.score, x, fake)

    def wasserstein(self, critic: Callable[[Tensor], Tensor], real: Tensor, *fakes: Tensor) -> Tensor:
        """Return what a critic minimises: minus its Wasserstein distances, and the penalties.

        Args:
            fakes: kinds of generated volumes; each has a distance and a penalty.
        """
        of_real = critic(real)
        distance = sum(of_real.mean() - critic(fake).mean() for fake in fakes)
        penalty = sum(gradient_penalty(critic, real, fake) for fake in fakes)
        return PENALTY * penalty - distance + self.drift * of_real.square().mean()

    def validate(self, batch: Batch) -> Losses:
        """Return the critic's score of held-out volumes, and the L1 error of their recovery.

        The latter needs an encoder.
        """
        x = batch["x"]
        scores = {"d_real": self.score(x).mean()}
        if "E" in self.networks:  # a subclass with an encoder has `recover`
            scores["recovery_l1"] = F.l1_loss(self.recover(x), x)  # type: ignore[attr-defined]
        return scores


class AlphaGAN(WGAN):
    """alpha-WGAN: an encoder and a generator together, a critic of volumes, a critic C of codes (Kwon et al., section 2).

    Encoder and generator: -D(G(z)) - D(G(E(x))) - C(E(x)) + 10 |x - G(E(x))|. The public code computes the term of C and leaves
    it out. Critics as WGAN's: D has two kinds of generated volumes; C tells noise ("real") from codes of volumes ("fake").
    """

    def build(self, size: int, latent: int, width: int, widest: int) -> dict[str, nn.Module]:
        """Make the networks; arguments as in `models.baselines`."""
        encoder = models.Critic(size, latent, width, widest)
        return super().build(size, latent, width, widest) | {"E": encoder, "C": models.CodeCritic(latent, 8 * widest)}

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Update, in this order: 1. G and E, 2. D, 3. C."""
        x = batch["x"]
        return {
            "g": self.update(("G", "E"), lambda: self.generator_loss(x), run),
            "d": self.update(("D",), lambda: self.critic_loss(x), run),
            "c": self.update(("C",), lambda: self.code_loss(x), run),
        }

    def generator_loss(self, x: Tensor) -> Tensor:
        """Return what generator and encoder minimise: recovery, and how little they fool D and C."""
        code = self.networks["E"](x)
        again = self.networks["G"](code)
        fooled = self.score(self.sample(x)).mean() + self.score(again).mean() + self.networks["C"](code).mean()
        return RECOVERY * F.l1_loss(again, x) - fooled

    def critic_loss(self, x: Tensor) -> Tensor:
        """Return what D minimises on real volumes, samples and recovered ones."""
        with torch.no_grad():
            fakes = self.sample(x), self.recover(x)
        return self.wasserstein(self.score, x, *fakes)

    def code_loss(self, x: Tensor) -> Tensor:
        """Return what C minimises on noise and codes."""
        with torch.no_grad():
            code = self.networks["E"](x)
        return self.wasserstein(self.networks["C"], self.noise(x), code)

    def recover(self, x: Tensor) -> Tensor:
        """Return volumes from their codes."""
        return self.networks["G"](self.networks["E"](x))


class VAEGAN(WGAN):
    """VAE-GAN (Larsen et al. 2015): the reconstruction is judged by the discriminator's features D_l, here those at 4^3.

    Discriminator: cross-entropy of real, reconstructed and sampled volumes. Generator: 20 |D_l(x) - D_l(x')|^2 and to fool D by
    both. Encoder: KL to N(0, I) + 10 |D_l(x) - D_l(x')|^2. Kwon et al. compare voxels instead of features, with these weights;
    squares and KL are means over elements.
    """

    def build(self, size: int, latent: int, width: int, widest: int) -> dict[str, nn.Module]:
        """Make the networks; arguments as in `models.baselines`."""
        encoder = models.GaussianEncoder(size, latent, width, widest)
        return super().build(size, latent, width, widest) | {"E": encoder}

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Update, in this order: 1. D, 2. G, 3. E."""
        x = batch["x"]
        return {
            "d": self.update(("D",), lambda: self.critic_loss(x), run),
            "g": self.update(("G",), lambda: self.generator_loss(x), run),
            "e": self.update(("E",), lambda: self.encoder_loss(x), run),
        }

    def critic_loss(self, x: Tensor) -> Tensor:
        """Return the cross-entropy of real, sampled and recovered volumes."""
        with torch.no_grad():
            fakes = self.sample(x), self.networks["G"](self.draw(*self.networks["E"](x)))
        return bce(self.score(x), True) + sum(bce(self.score(fake), False) for fake in fakes)

    def generator_loss(self, x: Tensor) -> Tensor:
        """Return what the generator minimises: the error of features, and how little it fools D."""
        with torch.no_grad():
            code = self.draw(*self.networks["E"](x))
        again = self.networks["G"](code)
        fooling = sum(bce(self.score(fake), True) for fake in (self.sample(x), again))
        return GENERATOR_WEIGHT * self.likeness(again, x) + fooling

    def encoder_loss(self, x: Tensor) -> Tensor:
        """Return what the encoder minimises: the KL to N(0, I), and the error of features."""
        posterior = self.networks["E"](x)
        again = self.networks["G"](self.draw(*posterior))
        return gaussian_kl(*posterior).mean() + ENCODER_WEIGHT * self.likeness(again, x)

    def likeness(self, again: Tensor, x: Tensor) -> Tensor:
        """Return the mean squared error of D's features of recovered and of real volumes."""
        with torch.no_grad():
            wanted = self.networks["D"].features(x)
        return F.mse_loss(self.networks["D"].features(again), wanted)

    def draw(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Draw codes from Gaussians, all (b, latent)."""
        return mean + (log_variance / 2).exp() * torch.randn_like(mean)

    def recover(self, x: Tensor) -> Tensor:
        """Return volumes from their mean codes."""
        return self.networks["G"](self.networks["E"](x)[0])


class ProgressiveGAN(WGAN):
    """Progressive GAN (Karras et al. 2018) with WGAN's losses and a drift term 0.001 D(x)^2: stage by stage from 4^3 to S^3.

    Every stage has an equal share of the training and fades in during its first half. Not here: its weight average, and larger
    batches at small stages. Until `begin_step` was called the last stage is trained, which sets the memory.
    """

    betas = (0.0, 0.99)
    drift = 0.001
    progress = 1.0  # share of the training that is done

    def build(self, size: int, latent: int, width: int, widest: int) -> dict[str, nn.Module]:
        """Make the networks; arguments as in `models.baselines`."""
        return {
            "G": models.GrowingGenerator(size, latent, width, widest),
            "D": models.ShrinkingCritic(size, width, widest),
        }

    def begin_step(self, step: int, steps: int) -> None:
        """Note how much of the training is done, which sets the stage."""
        self.progress = step / steps

    def stage(self) -> tuple[int, float]:
        """Return the stage k, and alpha, the weight of its own image."""
        stages = len(self.networks["G"].to_image)
        k = min(int(self.progress * stages), stages - 1)
        return k, min(1.0, 2 * (self.progress * stages - k)) if k else 1.0

    def at_stage(self, x: Tensor) -> Tensor:
        """Return real volumes as small as the stage, fading in with it."""
        k, alpha = self.stage()
        x = F.avg_pool3d(x, x.shape[-1] // (4 << k))
        return x if alpha == 1 else torch.lerp(models.twice(F.avg_pool3d(x, 2)), x, alpha)

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Update D and G on volumes of the stage's size."""
        return super().step({"x": self.at_stage(batch["x"])}, run)

    def sample(self, x: Tensor) -> Tensor:
        """Generate as many volumes of the stage as there are real ones."""
        return self.networks["G"](self.noise(x), *self.stage())

    def score(self, x: Tensor) -> Tensor:
        """Return the critic's scores (b, 1) of volumes of the stage."""
        return self.networks["D"](x, *self.stage())

    def validate(self, batch: Batch) -> Losses:
        """Return the critic's score of held-out volumes of the stage's size."""
        return super().validate({"x": self.at_stage(batch["x"])})


ALGORITHMS = {"WGAN": WGAN, "VAE-GAN": VAEGAN, "alpha-GAN": AlphaGAN, "Progressive GAN": ProgressiveGAN}
