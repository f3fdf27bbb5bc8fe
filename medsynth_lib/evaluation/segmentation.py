"""What a synthetic T1 is worth to a segmenter, and what happened to the lesion in it."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from scipy import ndimage
from torch import nn

from medsynth_lib.training.segmentation import INPUTS, REGIONS, regions


@torch.no_grad()
def segment(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Segment WT, TC and ET of one subject.

    Args:
        network: a trained segmenter.
        x: four contrasts (4, x, y, z), in the order of `INPUTS`.

    Returns:
        Boolean masks (3, x, y, z), on the CPU.
    """
    network.eval()
    x = x[None].to(next(network.parameters()).device)
    if x.device.type == "cpu" and x[0].numel() < 2**20:  # PyTorch's CPU convolves two small volumes faster than one
        x = x.expand(2, *x.shape[1:])
    return (network(x)[0] > 0).cpu()


@torch.no_grad()
def label_structures(network: nn.Module, cubes: torch.Tensor) -> torch.Tensor:
    """Label the structures of brains.

    Four at a time: PyTorch's CPU convolves a small volume that is alone by a slower algorithm, whose rounding differs.

    Args:
        network: a trained segmenter of structures.
        cubes: T1 (b, 1, x, y, z) in [-1, 1].

    Returns:
        (b, x, y, z), index into `atlas.STRUCTURES`, on the CPU.
    """
    network.eval()
    device = next(network.parameters()).device
    return torch.cat([network(part.to(device)).argmax(1).cpu() for part in cubes.split(4)])


def dice(a: ArrayLike, b: ArrayLike) -> float:
    """Take the Dice overlap 2 |a and b| / (|a| + |b|) of two boolean masks.

    It is nan where both are empty.
    """
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def dice_scores(network: nn.Module, sample: Mapping[str, torch.Tensor], t1: torch.Tensor) -> dict[str, float]:
    """Score a synthetic T1 by a segmenter that sees it beside three real contrasts.

    This is the protocol of paper 1, section 3.

    Args:
        network: a trained segmenter.
        sample: "x" (4, x, y, z), in the order of `INPUTS`, and "seg" (1, x, y, z).
        t1: (1, x, y, z), which takes the place of the real T1.

    Returns:
        dice_wt, dice_tc and dice_et, and dice, their mean; wt_ratio, segmented over true whole-tumour volume; wt_false, the
        part of the segmented volume in healthy tissue, over the true one.
    """
    x = sample["x"].clone()
    x[INPUTS.index("t1")] = t1[0]
    found, true = segment(network, x), regions(sample["seg"][None])[0] > 0
    out = {f"dice_{name.lower()}": dice(f, t) for name, f, t in zip(REGIONS, found, true, strict=True)}
    size = true[0].sum().clip(1)
    ratios = dict(wt_ratio=float(found[0].sum() / size), wt_false=float((found[0] & ~true[0]).sum() / size))
    return out | dict(dice=float(np.nanmean(list(out.values())))) | ratios


def lesion_contrast(image: ArrayLike, seg: ArrayLike, mask: ArrayLike, ring: int = 3) -> float:
    """Take the tumour core's mean intensity minus that of a shell around the tumour.

    The shell lies around the whole tumour, inside the brain.

    Lost contrast means that a synthesiser paints the lesion over; false contrast, that it invents one.

    Args:
        image: (x, y, z) in [0, 1].
        seg: tumour labels, 0 outside.
        mask: the brain.
        ring: width of the shell, in voxels.

    Returns:
        The contrast, in the image's unit; nan without a core.
    """
    image, seg, mask = (np.asarray(v).reshape(np.asarray(v).shape[-3:]) for v in (image, seg, mask))
    core, tumour = np.isin(seg, REGIONS["TC"]), seg > 0
    shell = ndimage.binary_dilation(tumour, iterations=ring) & ~tumour & mask.astype(bool)
    return float(image[core].mean() - image[shell].mean()) if core.any() and shell.any() else float("nan")


def contrast_table(
    views: Mapping[str, torch.Tensor], segs: Iterable[ArrayLike], masks: Iterable[ArrayLike]
) -> pd.DataFrame:
    """Take the `lesion_contrast` of several views of the same subjects.

    Args:
        views: (n, 1, x, y, z) in [-1, 1] by name; contrasts are taken on [0, 1].
        segs: n tumour labels.
        masks: n brains.

    Returns:
        One row a subject, one column a view, without subjects whose tumour has no core.
    """
    places = list(zip(segs, masks, strict=True))
    columns = {
        name: [lesion_contrast((v + 1) / 2, *place) for v, place in zip(volumes, places, strict=True)]
        for name, volumes in views.items()
    }
    return pd.DataFrame(columns).dropna()


def contrast_share(contrast: pd.DataFrame, patient: str, twin: str) -> pd.Series:
    """Take the share of a tumour's contrast that each view keeps.

    Args:
        contrast: of `contrast_table`.
        patient: the view with the tumour.
        twin: the view of the same subjects without a tumour.

    Returns:
        By view, the slope through 0 of its contrast beyond the twin's against the patient's: 1 for the patient, 0 for the twin.
    """
    made = contrast.sub(contrast[twin], axis=0)
    return made.mul(made[patient], axis=0).sum() / (made[patient] ** 2).sum()
