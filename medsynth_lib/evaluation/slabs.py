"""What a slab loses when it is generated on its own: HA-GAN's sub-volume in training against the whole volume (section II-B).

A slab is the sub-volume of D^H: ``depth`` slices along the first axis, from slice r on. Networks are those of a HAGAN by name,
with the running mean of its generator. Two things differ between a slab and the same slices of the whole volume: at a cut a
slab lacks its neighbours, and the group norm in G^H takes its mean and standard deviation from the slab alone.
"""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import nn

from medsynth_lib.training.hagan import select_high, select_low

REACH = 3  # slices at a cut that a neighbour's features would change
Networks = Mapping[str, nn.Module]


@torch.no_grad()
def group_statistics(high: nn.Module, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the mean and standard deviation that the group norm of G^H sees.

    Args:
        high: G^H.
        a: features (1, 2c, d, S/4, S/4) of a slab or of the whole volume.

    Returns:
        Mean and standard deviation, each (groups).
    """
    up, conv, norm, _ = high.first
    groups = conv(up(a)).unflatten(1, (norm.num_groups, -1)).flatten(2)[0]
    return groups.mean(1), groups.std(1)


@torch.no_grad()
def slab_and_whole(networks: Networks, z: torch.Tensor, r: int, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Generate a slab as in training, and the same slices as part of the whole volume.

    Args:
        networks: with "mean G^A" and "mean G^H".
        z: one code (1, latent).
        r: first slice of the slab.
        depth: slices of the slab.

    Returns:
        Two volumes (1, 1, depth, S, S) in [-1, 1].
    """
    a, high = networks["mean G^A"](z), networks["mean G^H"]
    return high(select_low(a, r, depth)), select_high(high(a), r, depth)


@torch.no_grad()
def slab_mismatch(networks: Networks, codes: torch.Tensor, depth: int) -> pd.DataFrame:
    """Measure how far slabs generated alone are from the same slabs of whole volumes.

    Every aligned start r is tried.

    Args:
        networks: with "mean G^A" and "mean G^H".
        codes: (n, latent).
        depth: slices of a slab.

    Returns:
        One row a start r. "inner slices" and "3 slices at a cut": root mean square difference, over all codes, far from the
        cuts and next to them; a border of the volume is no cut. "shift of the mean": of the slab's group norm, in standard
        deviations of the whole's. "ratio of the sd": of the slab's over the whole's.
    """
    squares, shifts, ratios = [], [], []
    for z in codes:
        a, high = networks["mean G^A"](z[None]), networks["mean G^H"]
        whole, (mean_all, sd_all) = high(a), group_statistics(high, a)
        starts = range(0, whole.shape[2] - depth + 1, 4)
        parts = [select_low(a, r, depth) for r in starts]
        errors = [high(part) - select_high(whole, r, depth) for part, r in zip(parts, starts, strict=True)]
        squares.append(torch.stack([error.square().mean((0, 1, 3, 4)) for error in errors]))
        statistics = [group_statistics(high, part) for part in parts]
        shifts.append(torch.stack([((mean - mean_all) / sd_all).abs().mean() for mean, _ in statistics]))
        ratios.append(torch.stack([(sd / sd_all).mean() for _, sd in statistics]))
    square = torch.stack(squares).mean(0)  # (starts, depth)
    cuts = [(r > 0) * [*range(REACH)] + (r < starts[-1]) * [*range(-REACH, 0)] for r in starts]
    columns = {
        "inner slices": square[:, REACH:-REACH].mean(1).sqrt(),
        "3 slices at a cut": torch.stack([row[where].mean() for row, where in zip(square, cuts, strict=True)]).sqrt(),
        "shift of the mean": torch.stack(shifts).mean(0),
        "ratio of the sd": torch.stack(ratios).mean(0),
    }
    return pd.DataFrame({name: v.tolist() for name, v in columns.items()}, index=pd.Index(starts, name="r"))


@torch.no_grad()
def judge_slabs(networks: Networks, real: torch.Tensor, codes: torch.Tensor, depth: int) -> pd.DataFrame:
    """Ask D^H about real slabs and two kinds of generated ones.

    The two kinds: generated alone, and cut from whole generated volumes.

    Args:
        networks: with "mean G^A", "mean G^H" and "D^H".
        real: volumes (n, 1, S, S, S) in [-1, 1].
        codes: (m, latent).
        depth: slices of a slab.

    Returns:
        Logits, one row an aligned start r; each row takes the next volume and the next code.
    """
    size = real.shape[2]
    rows = {}
    for i, r in enumerate(range(0, size - depth + 1, 4)):
        slab, whole = slab_and_whole(networks, codes[i % len(codes)][None], r, depth)
        seen = {"real": select_high(real[i % len(real)][None], r, depth), "generated as slab": slab}
        seen["cut from the whole"] = whole
        rows[r] = {name: float(networks["D^H"](x, r / (size - depth))[0, 0]) for name, x in seen.items()}
    return pd.DataFrame(rows).T.rename_axis("r")


def rightly_judged(logits: pd.DataFrame) -> pd.Series:
    """Take the share of slabs that D^H judges rightly, by column of `judge_slabs`.

    A real slab needs a logit above 0, another one below.
    """
    return pd.Series({name: float(((v > 0) if name == "real" else (v < 0)).mean()) for name, v in logits.items()})
