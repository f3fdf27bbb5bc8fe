"""The baselines as the public code of Kwon et al. trains them, with its faults, to stand beside `baselines`.

What each does otherwise stands in its class. A fault that only changes a weight is not repeated here. Progressive GAN has
no public 3D form.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsynth_lib.training.baselines import GENERATOR_WEIGHT, PENALTY, VAEGAN, WGAN, AlphaGAN, gradient_penalty
from medsynth_lib.training.loop import Batch, Losses, Run

GENERATOR_STEPS = 5  # of WGAN, for one of the critic


def voxelwise_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    r"""Return the penalty with the gradient's norm over the channel axis alone.

    There is one channel. So the gradient in each voxel is pulled to -1 or 1, and the penalty is a mean over voxels.
    Gulrajani et al. pull the norm over a whole volume to 1.

    Args:
        critic, real, fake: as in `baselines.gradient_penalty`.
    """
    u = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device)
    between = (u * real + (1 - u) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.norm(2, dim=1) - 1).square().mean()


class PublishedWGAN(WGAN):
    """WGAN whose penalty is `voxelwise_penalty`, with eight scores a volume, and five steps of G for one of D."""

    def build(self, size: int, latent: int, width: int, widest: int) -> dict[str, nn.Module]:
        """Make the networks; D's last convolution is strided and padded: 2^3 scores."""
        networks = super().build(size, latent, width, widest)
        last = networks["D"].last
        networks["D"].last = nn.Conv3d(last.in_channels, 1, 4, stride=2, padding=1)
        return networks

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Update, in this order: 1. D, 2. G, five times."""
        x = batch["x"]
        d = self.update(("D",), lambda: self.critic_loss(x), run)
        fooling = [self.update(("G",), lambda: -self.score(self.sample(x)).mean(), run) for _ in range(GENERATOR_STEPS)]
        return {"d": d, "g": torch.stack(fooling).mean()}

    def wasserstein(self, critic: Callable[[Tensor], Tensor], real: Tensor, *fakes: Tensor) -> Tensor:
        """Return what the critic minimises: minus its Wasserstein distance, and the penalty."""
        (fake,) = fakes
        return PENALTY * voxelwise_penalty(critic, real, fake) - (critic(real).mean() - critic(fake).mean())


class PublishedAlphaGAN(AlphaGAN):
    """alpha-WGAN whose C learns from noise alone, and whose G applies each gradient twice.

    The public code computes C's score of codes while C's weights are frozen, so that score has no gradient. C learns from
    codes by the penalty only.
    """

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Update, in this order: 1. G and E, G once more by the same gradient, 2. D, 3. C."""
        x = batch["x"]
        g = self.update(("G", "E"), lambda: self.generator_loss(x), run)
        self.optimisers["G"].step()
        d = self.update(("D",), lambda: self.critic_loss(x), run)
        return {"g": g, "d": d, "c": self.update(("C",), lambda: self.code_loss(x), run)}

    def code_loss(self, x: Tensor) -> Tensor:
        """Return what C minimises: minus the score of noise, and the penalty."""
        with torch.no_grad():
            code = self.networks["E"](x)
        noise, critic = self.noise(x), self.networks["C"]
        return PENALTY * gradient_penalty(critic, noise, code) - critic(noise).mean()


class PublishedVAEGAN(VAEGAN):
    """VAE-GAN that compares voxels in the place of D's features, and whose G minimises log(1 - D).

    That loss saturates: it has hardly a gradient where D is sure.
    """

    def generator_loss(self, x: Tensor) -> Tensor:
        """Return what the generator minimises: the error of voxels, minus D's loss."""
        with torch.no_grad():
            code = self.draw(*self.networks["E"](x))
        again = self.networks["G"](code)
        d_loss = sum(F.softplus(self.score(fake)).mean() for fake in (self.sample(x), again))  # -log(1 - D)
        return GENERATOR_WEIGHT * self.likeness(again, x) - d_loss

    def likeness(self, again: Tensor, x: Tensor) -> Tensor:
        """Return the mean squared error of voxels."""
        return F.mse_loss(again, x)
