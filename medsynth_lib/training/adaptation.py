"""What the three recipes of unsupervised adaptation share (section 2, '3D UDA with 2D s-VAE', equation 2).

The recipes: `adaptation_paper_text.PaperText`, `adaptation_paper_code.PaperCode`, and `adaptation_course.Course`.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.data import Dataset

from medsynth_lib.settings import SliceVAESettings, TrainingSettings
from medsynth_lib.training.loop import Algorithm, Batch, Losses
from medsynth_lib.training.pix2pix import l1_loss
from medsynth_lib.training.svae import images

VERSION = 1  # raise when the mathematics of a recipe changes: results of another version are not reused
BETAS = (0.5, 0.999)  # of Adam; public code

Posterior = tuple[torch.Tensor, torch.Tensor]  # mean and log-variance of Gaussians, of one shape


class SourceAndTarget(Dataset):
    """Source pairs beside target inputs: every combination, or the k-th with the k-th.

    A sample holds "x", "y" and "mask" of the source, "target_x" and "target_mask", and the source's "index". The
    target's T1 is never read: give volumes whose contract has no target.

    Args:
        source, target: prepared volumes.
        paired: the k-th source with the k-th target volume, where the shorter list begins again, as in the public code.
        limit: how many target volumes are used; None: all.
    """

    def __init__(self, source: Sequence, target: Sequence, paired: bool = False, limit: int | None = None):
        self.source, self.target, self.paired = source, target, paired
        self.n = min(limit or len(target), len(target))

    def __len__(self) -> int:
        return max(self.n, len(self.source)) if self.paired else self.n * len(self.source)

    def __getitem__(self, k: int) -> dict:
        i, j = (k % len(self.source), k % self.n) if self.paired else divmod(k, self.n)
        source, target = self.source[i], self.target[j]
        return {key: source[key] for key in ("x", "y", "mask")} | dict(
            target_x=target["x"], target_mask=target["mask"], index=torch.tensor(i)
        )


def posterior(encoder: nn.Module, volumes: torch.Tensor, svae: SliceVAESettings) -> Posterior:
    """Encode volumes, each alone, into the Gaussians q(z | volume).

    Args:
        encoder: of a slice-VAE or of its 3D twin; the result is on its device.
        volumes: (b, 1, x, y, z) in [0, 1].
        svae: how the encoder was trained: size, dims, plane, slices.

    Returns: mean and log-variance, each (b, n, width, 2, 2) for n slices, or (b, 1, width, 2, 2, 2) in 3D.
    """
    volumes = volumes.to(next(encoder.parameters()).device)
    codes = [encoder(images(volume[None], svae)) for volume in volumes]
    return tuple(torch.stack(parts) for parts in zip(*codes, strict=True))


@torch.no_grad()
def source_posteriors(encoder: nn.Module, volumes: torch.Tensor, svae: SliceVAESettings) -> Posterior:
    """Encode every real source T1 (b, 1, x, y, z): what equation 2 needs of P(Y_s)."""
    codes = [posterior(encoder, volume[None], svae) for volume in volumes]
    return tuple(torch.cat(parts) for parts in zip(*codes, strict=True))


def aggregate(mean: torch.Tensor, log_variance: torch.Tensor) -> Posterior:
    """Merge the posteriors of b volumes into one Gaussian a slice position.

    It has the moments of their mixture.

    Args:
        mean, log_variance: (b, n, ...), as from `source_posteriors`.

    Returns: mean and log-variance (1, n, ...): the mean of mu; the mean of sigma^2 plus the variance of mu.
    """
    variance = log_variance.exp().mean(0) + mean.var(0, unbiased=False)
    return mean.mean(0, keepdim=True), variance.log()[None]


class Adaptation(Algorithm):
    """A trained generator that goes on learning from source pairs; the recipes add what pulls it to the target.

    Args:
        settings: of the recipe.
        generator: the source site's trained synthesiser; it is changed in place.
    """

    reads: tuple[str, ...] = ("x", "y", "mask", "target_x", "target_mask", "index")

    def __init__(self, settings: TrainingSettings, generator: nn.Module) -> None:
        self.settings = settings
        self.networks = {"generator": generator}
        self.optimisers = {"generator": torch.optim.Adam(generator.parameters(), settings.learning_rate, BETAS)}

    def supervised(self, batch: Batch) -> torch.Tensor:
        """Return L_syn on a source pair."""
        return l1_loss(self.networks["generator"](batch["x"]), batch["y"])

    def generated(self, batch: Batch) -> torch.Tensor:
        """Synthesise the target volume's T1, set to zero outside the brain."""
        return self.networks["generator"](batch["target_x"]) * batch["target_mask"]

    def validate(self, batch: Batch) -> Losses:
        """Return the L1 of source tuning subjects.

        Nothing else may be looked at without the target's T1.
        """
        y_hat = self.networks["generator"](batch["x"])
        return {"brain_l1": (y_hat - batch["y"]).abs()[batch["mask"]].mean()}


if __name__ == "__main__":
    import sys

    from medsynth_lib.cli import main

    sys.exit(main(["adapt", *sys.argv[1:]]))
