"""What a synthetic T1 is worth to a segmenter, and what happened to the lesion in it."""

import numpy as np
import torch
from scipy import ndimage

from medsynth_lib.training.segmentation import INPUTS, REGIONS, regions


@torch.no_grad()
def segment(network, x):
    """Boolean WT, TC and ET (3, x, y, z) of one subject's four images x (4, x, y, z), in the order of INPUTS."""
    network.eval()
    x = x[None].to(next(network.parameters()).device)
    if x.device.type == "cpu" and x[0].numel() < 2**20:  # a small volume that is alone PyTorch's CPU convolves slower than two
        x = x.expand(2, *x.shape[1:])
    return (network(x)[0] > 0).cpu()


@torch.no_grad()
def label_structures(network, cubes):
    """Labels (b, x, y, z), index into `atlas.STRUCTURES`, of T1 cubes (b, 1, x, y, z) in [-1, 1].

    Four at a time: PyTorch's CPU convolves a small volume that is alone by a slower algorithm, whose rounding differs.
    """
    network.eval()
    device = next(network.parameters()).device
    return torch.cat([network(part.to(device)).argmax(1).cpu() for part in cubes.split(4)])


def dice(a, b):
    """Dice overlap 2 |a and b| / (|a| + |b|) of two boolean masks; nan where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def dice_scores(network, sample, t1):
    """Dice of WT, TC and ET after replacing the T1 of a four-contrast sample by ``t1`` (1, x, y, z); and two WT volume ratios.

    The paper's protocol: only T1 is synthetic. ``wt_ratio`` is segmented over true whole-tumour volume; ``wt_false``, the part of
    it that lies in healthy tissue: lesions that are not there.
    """
    x = sample["x"].clone()
    x[INPUTS.index("t1")] = t1[0]
    found, true = segment(network, x), regions(sample["seg"][None])[0] > 0
    out = {f"dice_{name.lower()}": dice(f, t) for name, f, t in zip(REGIONS, found, true, strict=True)}
    size = true[0].sum().clip(1)
    ratios = dict(wt_ratio=float(found[0].sum() / size), wt_false=float((found[0] & ~true[0]).sum() / size))
    return out | dict(dice=float(np.nanmean(list(out.values())))) | ratios


def lesion_contrast(image, seg, mask, ring=3):
    """Mean intensity of the tumour core minus that of a shell ``ring`` voxels wide around the whole tumour, inside the brain.

    Lost contrast means that a synthesiser paints the lesion over; false contrast, that it invents one. nan without a core.
    """
    image, seg, mask = (np.asarray(v).reshape(np.asarray(v).shape[-3:]) for v in (image, seg, mask))
    core, tumour = np.isin(seg, REGIONS["TC"]), seg > 0
    shell = ndimage.binary_dilation(tumour, iterations=ring) & ~tumour & mask.astype(bool)
    return float(image[core].mean() - image[shell].mean()) if core.any() and shell.any() else float("nan")
