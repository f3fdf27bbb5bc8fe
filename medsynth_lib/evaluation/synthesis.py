"""Run a synthesis network over subjects and score what comes out."""

import pandas as pd
import torch

from medsynth_lib.evaluation.image import scores


@torch.no_grad()
def predict(network, sample):
    """Synthetic target (1, X, Y, Z) of one prepared sample, on the CPU, zero outside the sample's brain mask.

    The mask comes from the inputs alone (see `prepare`), so nothing of the target enters.
    """
    network.eval()
    device = next(network.parameters()).device
    return network(sample["x"][None].to(device))[0].cpu() * sample["mask"]


def score_subjects(make, inputs, truth):
    """Scores of ``make(sample)`` for every subject of ``inputs`` against the same subject's "y" in ``truth``.

    ``inputs`` and ``truth`` are PairedVolumes (the same one, or two sites that share subjects). Returns a DataFrame indexed
    by subject with the columns of `scores`. The mask is where both sites' inputs are brain, so that two truths are scored
    on the same voxels. Raises KeyError where ``truth`` lacks a subject of ``inputs``.
    """
    where = {subject: i for i, subject in enumerate(truth.frame["subject"])}
    rows = {}
    for i, subject in enumerate(inputs.frame["subject"]):
        sample, target = inputs[i], truth[where[subject]]
        mask = sample["mask"] & target["mask"]
        rows[subject] = scores(make(sample), target["y"], mask, target.get("seg"))
    return pd.DataFrame(rows).T.rename_axis("subject")


def summary(tables, columns=("psnr", "ssim", "nmi", "tumour_psnr", "healthy_psnr", "paper_psnr")):
    """Mean ± standard deviation over subjects of several score tables (name -> DataFrame), as text."""
    rows = {name: {c: f"{t[c].mean():.3f} ± {t[c].std():.3f}" for c in columns if c in t} for name, t in tables.items()}
    return pd.DataFrame(rows).T


def mean_target(volumes):
    """A baseline that ignores its input: the voxelwise mean target of a data set, as a function of a sample."""
    mean = torch.stack([volumes[i]["y"] for i in range(len(volumes))]).mean(0)
    return lambda sample: mean * sample["mask"]


def copy_input(channel):
    """A baseline that returns one input channel: 0 is FLAIR, 1 is T2."""
    return lambda sample: sample["x"][channel : channel + 1]
