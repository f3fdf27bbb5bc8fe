"""Do sampled images look like real ones? Distances between sets of images, and coherence between slices."""

import torch


def sliced_wasserstein(a, b, projections=256, seed=0):
    """Mean 1-Wasserstein distance between two sets of images (n, ...) and (m, ...) along random directions of pixel space.

    Directions are unit vectors: the distance is that of one random combination of pixels. 0 for equal sets.
    """
    a, b = a.flatten(1), b.flatten(1)
    directions = torch.randn(a.shape[1], projections, generator=torch.Generator().manual_seed(seed))
    directions /= directions.norm(dim=0)
    levels = torch.linspace(0, 1, 101)
    quantiles = [torch.quantile(x @ directions, levels, dim=0) for x in (a, b)]
    return float((quantiles[0] - quantiles[1]).abs().mean())


def neighbour_correlation(volumes, axis=-1, threshold=0.05):
    """Mean correlation of each slice with the next along ``axis`` in volumes (n, x, y, z), blank pairs left out.

    1: slices continue each other; less: they belong to different heads. A slice without a voxel above ``threshold`` is blank;
    beside one that is not, it counts as 0. nan where all is blank.
    """
    volumes = volumes.movedim(axis, 1)
    one, two = volumes[:, :-1].flatten(0, 1).flatten(1), volumes[:, 1:].flatten(0, 1).flatten(1)
    values = [
        torch.corrcoef(torch.stack([x, y]))[0, 1].nan_to_num(0.0)
        for x, y in zip(one, two, strict=True)
        if max(x.max(), y.max()) > threshold
    ]
    return float(torch.stack(values).mean()) if values else float("nan")
