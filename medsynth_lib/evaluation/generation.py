"""Do generated volumes differ from each other, and from what the generator was trained on?

Volumes are cubes (n, 1, N, N, N) in [-1, 1]. A value of generated volumes means something only beside that of real ones.
"""

from itertools import combinations

import numpy as np
import pandas as pd
import torch
from monai.metrics.regression import compute_ms_ssim

from medsynth_lib.training.hagan import sample

WEIGHTS = np.array([0.0448, 0.2856, 0.3001])  # of the three finest of the five scales of Wang et al. 2003
WEIGHTS = tuple(WEIGHTS / WEIGHTS.sum())
KERNEL = 7  # voxels: three scales of 64 voxels leave 16, which a window of 11 would hardly fit


@torch.no_grad()
def generate(networks, z, average=True, batch=4):
    """Whole volumes (n, 1, S, S, S) of codes (n, latent [+ classes]), on the CPU.

    ``networks`` are those of a HAGAN; ``average`` takes the running mean of the generator's weights where there is one.
    """
    prefix = "mean " if average and "mean G^A" in networks else ""
    common, high = networks[f"{prefix}G^A"], networks[f"{prefix}G^H"]
    device = next(common.parameters()).device
    return torch.cat([sample(common, high, part.to(device)).cpu() for part in z.split(batch)])


def ms_ssim(a, b):
    """Multi-scale structural similarity (Wang et al. 2003) of pairs of volumes (n, 1, N, N, N) in [-1, 1]: a tensor (n).

    Three scales, Gaussian window of 7 voxels with sigma 1.5, values mapped to [0, 1]; 1 for equal volumes, symmetric.
    Raises ValueError below 28 voxels an axis.
    """
    a, b = (a + 1) / 2, (b + 1) / 2
    return compute_ms_ssim(a, b, spatial_dims=3, kernel_size=KERNEL, kernel_sigma=1.5, weights=WEIGHTS)[:, 0]


def pairwise_ms_ssim(volumes, pairs=40, seed=0):
    """MS-SSIM of at most ``pairs`` different pairs among volumes, drawn without repetition: an array (pairs).

    High values say that the volumes resemble each other: mode collapse, if those of real volumes are lower.
    """
    every = list(combinations(range(len(volumes)), 2))
    chosen = np.random.default_rng(seed).permutation(len(every))[:pairs]
    return np.array([float(ms_ssim(*(volumes[k][None] for k in every[i]))) for i in chosen])


def distances(queries, references):
    """Root mean squared difference of every query to every reference: a tensor (n, m).

    ``references`` are read one at a time, so that a whole training set may be given: a tensor or an iterable of volumes.
    """
    flat = queries.flatten(1).double()  # a sum over all voxels
    # matrix products, which cdist takes from 26 rows on, would leave a copy at a distance above 0
    columns = [
        torch.cdist(flat, one.reshape(1, -1).double(), compute_mode="donot_use_mm_for_euclid_dist")
        for one in references
    ]
    return (torch.cat(columns, 1) / flat.shape[1] ** 0.5).to(queries.dtype)


def nearest_neighbours(queries, references):
    """Table, a row a query: "nearest", the index of its nearest reference; "distance" to it; and "share", that over the
    median distance to all references.

    A copy has distance and share 0, if there are at least three references. A blurred volume is near to everything, so its
    distance is small and its share near 1.
    """
    d = distances(queries, references)
    distance, nearest = d.min(1)
    return pd.DataFrame(dict(nearest=nearest, distance=distance, share=distance / d.median(1).values))
