"""Do generated volumes differ from each other, and from what the generator was trained on?

Volumes are cubes (n, 1, N, N, N) in [-1, 1]. A value of generated volumes means something only beside that of real ones.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from torch import nn

from medsynth_lib.evaluation.hagan_inference import sample

WEIGHTS = np.array([0.0448, 0.2856, 0.3001])  # of the three finest of the five scales of Wang et al. 2003
WEIGHTS = tuple(WEIGHTS / WEIGHTS.sum())
KERNEL = 7  # voxels: three scales of 64 voxels leave 16, which a window of 11 would hardly fit


@torch.no_grad()
def in_batches(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, size: int = 4) -> torch.Tensor:
    """Apply a function of volumes or codes to a few of them at a time, without gradients.

    Args:
        function: (b, ...) to (b, ...).
        x: (n, ...).
        size: how many at a time.
    """
    return torch.cat([function(part) for part in x.split(size)])


def generate(networks: Mapping[str, nn.Module], z: torch.Tensor, average: bool = True, batch: int = 4) -> torch.Tensor:
    """Generate whole volumes of codes.

    Args:
        networks: those of a HAGAN, by name.
        z: codes (n, latent [+ classes]).
        average: take the running mean of the generator's weights where there is one.
        batch: volumes at a time.

    Returns:
        (n, 1, S, S, S) in [-1, 1], on the CPU.
    """
    prefix = "mean " if average and "mean G^A" in networks else ""
    common, high = networks[f"{prefix}G^A"], networks[f"{prefix}G^H"]
    device = next(common.parameters()).device
    return in_batches(lambda part: sample(common, high, part.to(device)).cpu(), z, batch)


def ms_ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Take the multi-scale structural similarity (Wang et al. 2003) of pairs of volumes.

    Three scales, a Gaussian window of 7 voxels with sigma 1.5, values mapped to [0, 1].

    Args:
        a: (n, 1, N, N, N) in [-1, 1], with N at least 28.
        b: (n, 1, N, N, N) in [-1, 1].

    Returns:
        (n); 1 for equal volumes, symmetric.

    Raises:
        ValueError: N is below 28.
    """
    from monai.metrics.regression import compute_ms_ssim  # MONAI takes seconds to import

    a, b = (a + 1) / 2, (b + 1) / 2
    return compute_ms_ssim(a, b, spatial_dims=3, kernel_size=KERNEL, kernel_sigma=1.5, weights=WEIGHTS)[:, 0]


def pairwise_ms_ssim(volumes: torch.Tensor, pairs: int = 40, seed: int = 0) -> np.ndarray:
    """Take the MS-SSIM of different pairs among volumes, drawn without repetition.

    High values say that the volumes resemble each other: mode collapse, if those of real volumes are lower.

    Args:
        volumes: (n, 1, N, N, N) in [-1, 1].
        pairs: at most this many; n (n - 1) / 2 where that is less.
        seed: of the draw.

    Returns:
        One value a pair.
    """
    every = list(combinations(range(len(volumes)), 2))
    chosen = np.random.default_rng(seed).permutation(len(every))[:pairs]
    return np.array([float(ms_ssim(*(volumes[k][None] for k in every[i]))) for i in chosen])


def distances(queries: torch.Tensor, references: Iterable[torch.Tensor]) -> torch.Tensor:
    """Take the root mean squared difference of every query to every reference.

    References are read one at a time, so that a whole training set may be given.

    Args:
        queries: (n, ...).
        references: m volumes of a query's shape: a tensor or an iterable.

    Returns:
        (n, m); exactly 0 for a copy.
    """
    flat = queries.flatten(1).double()  # a sum over all voxels
    # matrix products, which cdist takes from 26 rows on, would leave a copy at a distance above 0
    columns = [
        torch.cdist(flat, one.reshape(1, -1).double(), compute_mode="donot_use_mm_for_euclid_dist")
        for one in references
    ]
    return (torch.cat(columns, 1) / flat.shape[1] ** 0.5).to(queries.dtype)


def nearest_neighbours(queries: torch.Tensor, references: Iterable[torch.Tensor]) -> pd.DataFrame:
    """Find the nearest reference of every query.

    A copy has distance and share 0, if there are at least three references. A blurred volume is near to everything: its
    distance is small and its share near 1.

    Args:
        queries: (n, ...).
        references: volumes of a query's shape: a tensor or an iterable.

    Returns:
        One row a query: "nearest", the index of its nearest reference; "distance" to it; and "share", that distance over
        the median distance to all references.
    """
    d = distances(queries, references)
    distance, nearest = d.min(1)
    return pd.DataFrame(dict(nearest=nearest, distance=distance, share=distance / d.median(1).values))
