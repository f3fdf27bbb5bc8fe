"""Unsupervised adaptation of a trained synthesiser with a slice-VAE (section 2, '3D UDA with 2D s-VAE', eq. 2)."""

import torch
from torch.utils.data import Dataset

from medsynth_lib.models.divergence import DIVERGENCES, kl
from medsynth_lib.training.loop import Algorithm, Run
from medsynth_lib.training.pix2pix import l1_loss
from medsynth_lib.training.svae import images

VERSION = 1  # raise when the mathematics below changes: results of another version are not reused
PAPER_SHARE = 0.55  # of the latent elements, the largest ones: what the authors' public code sums


class SourceAndTarget(Dataset):
    """Source pairs beside target inputs: every combination, or (``paired``) the k-th with the k-th, as the authors' code does.

    A sample holds "x", "y", "mask" of the source, "target_x" and "target_mask", and the source's "index". The target's T1 is
    never read: give it volumes whose contract has target None. ``limit`` uses the first target subjects only.
    """

    def __init__(self, source, target, paired=False, limit=None):
        self.source, self.target, self.paired = source, target, paired
        self.n = min(limit or len(target), len(target))

    def __len__(self):
        return self.n if self.paired else self.n * len(self.source)

    def __getitem__(self, k):
        i, j = (k % len(self.source), k) if self.paired else divmod(k, self.n)
        source, target = self.source[i], self.target[j]
        return {key: source[key] for key in ("x", "y", "mask")} | dict(
            target_x=target["x"], target_mask=target["mask"], index=torch.tensor(i)
        )


def posterior(encoder, volumes, recipe):
    """q(z | volume) of volumes (b, 1, x, y, z): mean and log-variance, (b, n, width, 2, 2), or (b, 1, width, 2, 2, 2) in 3D.

    ``recipe`` is that of the slice-VAE: size, dims, plane, slices. The result is on the encoder's device.
    """
    volumes = volumes.to(next(encoder.parameters()).device)
    codes = [encoder(images(volume[None], recipe)) for volume in volumes]
    return tuple(torch.stack(parts) for parts in zip(*codes, strict=True))


@torch.no_grad()
def source_posteriors(encoder, volumes, recipe):
    """Mean and log-variance of every real source T1 (b, 1, x, y, z): what eq. (2) needs of P(Y_s)."""
    codes = [posterior(encoder, volume[None], recipe) for volume in volumes]
    return tuple(torch.cat(parts) for parts in zip(*codes, strict=True))


def aggregate(mean, log_variance):
    """One Gaussian a slice position for many volumes (b, n, ...): the mean of mu; the mean of sigma^2 plus the variance of mu.

    This is the Gaussian with the moments of the mixture of all posteriors: P(Y_s) as a distribution over volumes.
    """
    variance = log_variance.exp().mean(0) + mean.var(0, unbiased=False)
    return mean.mean(0, keepdim=True), variance.log()[None]


class Adaptation(Algorithm):
    """Supervised source steps and a divergence between the source's slice posteriors and those of generated target volumes.

    ``recipe`` keys: profile, divergence, rho, prior, and the learning rate's schedule.

    - profile "fixed" (default of the course): one step on both losses, the latent gradient scaled to ``rho`` times the norm of
      the supervised one; frozen encoder in evaluation mode; every element counts. ``rho`` 0 is continued training, exactly.
    - profile "paper": two steps on one Adam state, the second on KL alone, at weight 1; encoder in training mode; the largest
      55 % of the elements. Any ``rho`` above 0 is weight 1; at 0 the second step has a gradient of zero, and Adam moves on.

    ``prior`` "bank" compares with `aggregate` of all source volumes, "pair" with the one source volume of the sample.
    ``encoder``, ``svae_recipe``: a trained slice-VAE's, or None with rho 0; ``bank``: its `source_posteriors`. ``reads``: keys of
    a sample; without "target_x" this is supervised fine-tuning.
    """

    READS = ("x", "y", "mask", "target_x", "target_mask", "index")

    def __init__(self, settings, generator, encoder=None, svae_recipe=None, bank=None, reads=READS):
        self.settings, self.encoder, self.svae_recipe, self.bank, self.reads = settings, encoder, svae_recipe, bank, reads
        self.paper = settings.profile == "paper"
        self.networks = {"generator": generator}
        self.optimisers = {"generator": torch.optim.Adam(generator.parameters(), settings.learning_rate, (0.5, 0.999))}
        if encoder is not None:
            encoder.requires_grad_(False).train(self.paper)
            self.prior = aggregate(*bank)

    def step(self, batch, run=Run()):
        """One step on a batch of `SourceAndTarget`; returns the losses, detached."""
        return self.paper_step(batch, run) if self.paper else self.fixed_step(batch)

    def fixed_step(self, batch):
        parameters = list(self.networks["generator"].parameters())
        losses = {"l1": self.supervised(batch)}
        gradient = torch.autograd.grad(losses["l1"], parameters)
        if self.settings.rho > 0:
            losses["latent"] = self.latent(batch)
            latent_gradient = torch.autograd.grad(losses["latent"], parameters)
            scale = self.settings.rho * norm(gradient) / norm(latent_gradient).clip(1e-12)  # nothing to see: no step
            gradient = [g + scale * h for g, h in zip(gradient, latent_gradient, strict=True)]
        for parameter, g in zip(parameters, gradient, strict=True):
            parameter.grad = g
        self.optimisers["generator"].step()
        return {name: loss.detach() for name, loss in losses.items()}

    def paper_step(self, batch, run):
        losses = {}
        for name, loss in (("l1", self.supervised), ("latent", self.latent)):
            self.optimisers["generator"].zero_grad(set_to_none=False)
            if name == "l1" or self.settings.rho > 0:
                losses[name] = loss(batch)
                run.backward(losses[name])
            self.optimisers["generator"].step()  # with a gradient of zero it moves, too
        return {name: loss.detach() for name, loss in losses.items()}

    def supervised(self, batch):
        return l1_loss(self.networks["generator"](batch["x"]), batch["y"])

    def latent(self, batch):
        """L_ada, eq. (2): between P(Y_s) and the posterior of the generated target volume, outside the brain set to zero."""
        generated = self.networks["generator"](batch["target_x"]) * batch["target_mask"]
        q = posterior(self.encoder, generated, self.svae_recipe)
        p = self.prior
        if self.settings.prior == "pair":
            p = tuple(part[batch["index"]] for part in self.bank)
        if self.paper:
            elements = kl(p, q).flatten()
            return elements.topk(int(PAPER_SHARE * len(elements))).values.sum()
        return DIVERGENCES[self.settings.divergence](p, q).mean()

    def validate(self, batch):
        """L1 of source tuning subjects: all that may be looked at without the target's T1."""
        y_hat = self.networks["generator"](batch["x"])
        return {"brain_l1": (y_hat - batch["y"]).abs()[batch["mask"]].mean()}


def norm(gradient):
    """Euclidean norm of a list of tensors."""
    return torch.stack([g.norm() for g in gradient]).norm()


if __name__ == "__main__":
    import sys

    from medsynth_lib.cli import main

    sys.exit(main(["adapt", *sys.argv[1:]]))
