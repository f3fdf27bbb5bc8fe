"""Do sampled images look like real ones? Distances between sets of images, and coherence between slices."""

import torch


def sliced_wasserstein(a: torch.Tensor, b: torch.Tensor, projections: int = 256, seed: int = 0) -> float:
    """Average the 1-Wasserstein distance of two sets of images over random directions.

    The directions are those of pixel space.

    Directions are unit vectors, so that the distance is that of one random combination of pixels.

    Args:
        a: (n, ...) images.
        b: (m, ...) images of the same shape.
        projections: number of directions.
        seed: of the directions.

    Returns:
        The distance in the images' unit; 0 for equal sets.
    """
    a, b = a.flatten(1), b.flatten(1)
    directions = torch.randn(a.shape[1], projections, generator=torch.Generator().manual_seed(seed))
    directions /= directions.norm(dim=0)
    levels = torch.linspace(0, 1, 101)
    quantiles = [torch.quantile(x @ directions, levels, dim=0) for x in (a, b)]
    return float((quantiles[0] - quantiles[1]).abs().mean())


def spread_within(volumes: torch.Tensor) -> float:
    """Average how far each volume of a set lies from the next one.

    The next one of the last volume is the first.

    Args:
        volumes: (n, ...) in [-1, 1].

    Returns:
        Mean absolute difference on [0, 1]; 0 where all volumes are equal.
    """
    return float((volumes - volumes.roll(1, 0)).abs().mean() / 2)


def neighbour_correlation(volumes: torch.Tensor, axis: int = -1, threshold: float = 0.05) -> float:
    """Average the correlation of each slice with the next one along an axis.

    Pairs of two blank slices are left out. A blank slice beside one that is not blank counts as 0.

    Args:
        volumes: (n, x, y, z) in [0, 1].
        axis: axis of ``volumes`` that slices are numbered along.
        threshold: a slice without a voxel above this value is blank.

    Returns:
        1 where slices continue each other, less where they belong to different heads; nan where all is blank.
    """
    volumes = volumes.movedim(axis, 1)
    one, two = volumes[:, :-1].flatten(0, 1).flatten(1), volumes[:, 1:].flatten(0, 1).flatten(1)
    values = [
        torch.corrcoef(torch.stack([x, y]))[0, 1].nan_to_num(0.0)
        for x, y in zip(one, two, strict=True)
        if max(x.max(), y.max()) > threshold
    ]
    return float(torch.stack(values).mean()) if values else float("nan")
