"""Adaptation as the course does it: one step on both losses, whose gradients have a fixed ratio of norms."""

from collections.abc import Sequence

import torch
from torch import nn

from medsynth_lib.models.divergence import DIVERGENCES
from medsynth_lib.settings import AdaptationSettings, SliceVAESettings
from medsynth_lib.training.adaptation import Adaptation, Posterior, aggregate, posterior
from medsynth_lib.training.loop import Batch, Losses, Run


class Course(Adaptation):
    """Equation 2 against all source volumes, weighed by ``settings.rho``.

    The latent gradient is scaled to ``rho`` times the norm of the supervised one, and Adam takes one step on their sum.
    With ``rho`` 0 this is continued training, to the bit; without target inputs among ``reads`` it is fine-tuning.
    The encoder is frozen in evaluation mode, and every latent element counts.

    Args:
        settings: divergence, rho, learning rate.
        generator: the source site's trained synthesiser.
        encoder, svae: a trained slice-VAE's encoder and settings; None with rho 0.
        bank: `source_posteriors` of the source T1; None with rho 0.
        reads: keys of a sample.
    """

    settings: AdaptationSettings

    def __init__(
        self,
        settings: AdaptationSettings,
        generator: nn.Module,
        encoder: nn.Module | None = None,
        svae: SliceVAESettings | None = None,
        bank: Posterior | None = None,
        reads: Sequence[str] = Adaptation.reads,
    ) -> None:
        super().__init__(settings, generator)
        self.encoder, self.svae, self.reads = encoder, svae, tuple(reads)
        if encoder is not None:
            encoder.requires_grad_(False).eval()
            self.prior = aggregate(*bank)

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Take one step on the supervised loss and, with rho above 0, on the latent one."""
        parameters = list(self.networks["generator"].parameters())
        losses = {"l1": self.supervised(batch)}
        gradient = torch.autograd.grad(losses["l1"], parameters)
        if self.settings.rho > 0:
            losses["latent"] = self.latent(batch)
            latent = torch.autograd.grad(losses["latent"], parameters)
            scale = self.settings.rho * norm(gradient) / norm(latent).clip(1e-12)  # a gradient of zero stays zero
            gradient = [g + scale * h for g, h in zip(gradient, latent, strict=True)]
        for parameter, g in zip(parameters, gradient, strict=True):
            parameter.grad = g
        self.optimisers["generator"].step()
        return {name: loss.detach() for name, loss in losses.items()}

    def latent(self, batch: Batch) -> torch.Tensor:
        """Return L_ada (equation 2), a mean over latent elements.

        It holds P(Y_s) against the posterior of the generated target volume.
        """
        q = posterior(self.encoder, self.generated(batch), self.svae)
        return DIVERGENCES[self.settings.divergence](self.prior, q).mean()


def norm(gradient: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the Euclidean norm of a list of tensors."""
    return torch.stack([g.norm() for g in gradient]).norm()
