"""Run a synthesis network over subjects and score what comes out."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import nn

from medsynth_lib.evaluation.image import scores

if TYPE_CHECKING:
    from medsynth_lib.data.preparation.pairs import PairedVolumes

Sample = Mapping[str, torch.Tensor]
Make = Callable[[Sample], torch.Tensor]  # a sample to its synthetic target (1, x, y, z)
COLUMNS = ("psnr", "ssim", "nmi", "tumour_psnr", "healthy_psnr", "paper_psnr")


@torch.no_grad()
def predict(network: nn.Module, sample: Sample) -> torch.Tensor:
    """Synthesise the target of one prepared sample.

    The mask comes from the inputs alone, so nothing of the target enters.

    Args:
        network: (b, channels, x, y, z) to (b, 1, x, y, z).
        sample: "x" (channels, x, y, z) and "mask" (1, x, y, z).

    Returns:
        (1, x, y, z) in [0, 1], on the CPU, 0 outside the sample's brain mask.
    """
    network.eval()
    device = next(network.parameters()).device
    return network(sample["x"][None].to(device))[0].cpu() * sample["mask"]


def score_subjects(make: Make, inputs: "PairedVolumes", truth: "PairedVolumes") -> pd.DataFrame:
    """Score what is made of every subject against the same subject's true target.

    The mask is where both sites' inputs are brain, so that two truths are scored on the same voxels.

    Args:
        make: sample -> (1, x, y, z).
        inputs: the subjects to synthesise.
        truth: the same volumes, or those of another site with the same subjects.

    Returns:
        One row a subject, with the columns of `image.scores`.

    Raises:
        KeyError: ``truth`` lacks a subject of ``inputs``.
    """
    where = {subject: i for i, subject in enumerate(truth.manifest.table["subject"])}
    rows = {}
    for i, subject in enumerate(inputs.manifest.table["subject"]):
        sample, target = inputs[i], truth[where[subject]]
        mask = sample["mask"] & target["mask"]
        rows[subject] = scores(make(sample), target["y"], mask, target.get("seg"))
    return pd.DataFrame(rows).T.rename_axis("subject")


def summary(tables: Mapping[str, pd.DataFrame], columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """Write tables of `score_subjects` as text, a row each: mean ± standard deviation.

    Both are over subjects.
    """
    rows = {name: {c: f"{t[c].mean():.3f} ± {t[c].std():.3f}" for c in columns if c in t} for name, t in tables.items()}
    return pd.DataFrame(rows).T


def mean_target(volumes: "PairedVolumes") -> Make:
    """Make a baseline that ignores its input: the voxelwise mean target of a data set."""
    mean = torch.stack([volumes[i]["y"] for i in range(len(volumes))]).mean(0)
    return lambda sample: mean * sample["mask"]


def copy_input(channel: int) -> Make:
    """Make a baseline that returns one input channel: 0 is FLAIR, 1 is T2."""
    return lambda sample: sample["x"][channel : channel + 1]
