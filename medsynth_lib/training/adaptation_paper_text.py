"""Adaptation by the paper's text: a supervised update, then one on the KL of equation 2 (sections 2 and 3)."""

import torch
from torch import nn

from medsynth_lib.models.divergence import kl
from medsynth_lib.settings import PaperTextSettings, SliceVAESettings
from medsynth_lib.training.adaptation import Adaptation, Posterior, posterior
from medsynth_lib.training.loop import Batch, Losses, Run

SHARE = 0.55  # of the latent elements: the largest ones count


class PaperText(Adaptation):
    """Two updates a step, L1 on a source pair and L_ada on a target volume, as section 3 says in words.

    Where the text is silent, or says "with previous hyper-parameters", this recipe does the following:
    - P(Y_s) is the posterior of one source volume, that of the sample;
    - L_ada has weight 1, and counts the largest 55 % of its elements, which is borrowed from the public code;
    - generated volumes are set to zero outside the brain;
    - both updates share one Adam state;
    - the encoder is in training mode: batch norm uses the statistics of this volume's own slices, as in the public code;
    - the supervised update is L1 alone, without D.
    It leaves out the augmentation of section 3.

    It is not the public code: see `PaperCode` for what that does. The control has no encoder. Its second
    gradient is zero, but Adam's momentum still moves the weights. So only the latent loss differs.

    Args:
        settings: learning rate and its schedule.
        generator: the source site's trained synthesiser.
        encoder, svae: a trained slice-VAE's encoder and settings, or None.
        bank: `source_posteriors` of the source T1, in the order of the samples' "index".
    """

    def __init__(
        self,
        settings: PaperTextSettings,
        generator: nn.Module,
        encoder: nn.Module | None = None,
        svae: SliceVAESettings | None = None,
        bank: Posterior | None = None,
    ) -> None:
        super().__init__(settings, generator)
        self.encoder, self.svae, self.bank = encoder, svae, bank
        if encoder is not None:
            encoder.requires_grad_(False).train()

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Take both updates on a batch."""
        losses = {}
        for name, loss in {"l1": self.supervised, "latent": self.latent}.items():
            self.optimisers["generator"].zero_grad(set_to_none=False)
            if name == "l1" or self.encoder is not None:
                losses[name] = loss(batch)
                run.backward(losses[name])
            self.optimisers["generator"].step()  # also moves on a gradient of zero
        return {name: loss.detach() for name, loss in losses.items()}

    def latent(self, batch: Batch) -> torch.Tensor:
        """Return L_ada: the sum over the largest elements of a KL.

        The KL is KL(q(z | source T1) || q(z | generated T1)).
        """
        p = tuple(part[batch["index"]] for part in self.bank)
        q = posterior(self.encoder, self.generated(batch), self.svae)
        elements = kl(p, q).flatten()
        return elements.topk(int(SHARE * len(elements))).values.sum()
