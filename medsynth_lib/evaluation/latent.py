"""Directions in a generator's latent space: found by least squares, walked along, and judged by what else they move.

HA-GAN paper, section IV-D (Figs. 7 and 8). Its discussion C names entanglement and does not measure it. Codes z are (n, d)
tensors and factors y (n, k), both in any unit. Directions are (k, d), one row a factor.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

RIDGES = (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class LinearModel:
    """The predictor of factors from codes, y = W z + b (section IV-D)."""

    weights: Tensor  # W (k, d)
    offset: Tensor  # b (k)

    def __call__(self, z: Tensor) -> Tensor:
        return z @ self.weights.T + self.offset


def covariance(a: Tensor, b: Tensor) -> Tensor:
    """Return Cov(a, b) (i, j) of paired rows (n, i) and (n, j)."""
    return (a - a.mean(0)).T @ (b - b.mean(0)) / len(a)


def least_squares(z: Tensor, y: Tensor, ridge: float | Tensor = 0.0) -> LinearModel:
    """Fit W = Cov(y, z) (Cov(z) + ridge v I)^+, where v is the codes' mean variance.

    Ridge 0 is the paper's least squares. With fewer codes than a code has numbers it gives the shortest W of those that fit
    exactly, and fits noise.

    Args:
        z: codes (n, d).
        y: factors (n, k).
        ridge: a number, or one for each factor (k).

    Raises:
        ValueError: for fewer than two codes.
    """
    if len(z) < 2:
        raise ValueError(f"{len(z)} codes are too few to fit a direction to")
    z64, y64 = z.double(), y.double()
    variances, axes = torch.linalg.eigh(covariance(z64, z64))
    ridges = torch.as_tensor(ridge, dtype=torch.float64).expand(y.shape[1])[:, None]
    spread = variances.clamp(min=0) + ridges * variances.mean()  # (k, d)
    inverse = torch.where(
        spread > 1e-12 * variances.max(), 1 / spread, 0
    )  # (.)^+: an axis that no code uses gets no weight
    weights = (covariance(y64, z64) @ axes * inverse) @ axes.T
    return LinearModel(weights.to(z), (y64.mean(0) - weights @ z64.mean(0)).to(z))


def held_out_r2(z: Tensor, y: Tensor, ridge: float | Tensor | None = 0.0, folds: int = 5, seed: int = 0) -> Tensor:
    """Return R^2 (k) of predictions for codes that were left out of the fit.

    It is at most 1, and below 0 where the mean of all predicts better. That mean knows the codes that are left out. So R^2 of
    factors that have nothing to do with codes is a little below 0 with ridge None. Without a ridge it is far below where
    codes are hardly more than the numbers of a code.

    Args:
        z: codes (n, d).
        y: factors (n, k).
        ridge: as in `least_squares`; None chooses it anew for each fold, from the other folds alone.
        folds: parts that are left out in turn.
        seed: of the parts.
    """
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    predicted = torch.empty_like(y)
    for part in order.chunk(folds):
        rest = order[~torch.isin(order, part)]
        used = choose_ridge(z[rest], y[rest])[0] if ridge is None else ridge
        predicted[part] = least_squares(z[rest], y[rest], used)(z[part])
    return 1 - (y - predicted).square().mean(0) / y.var(0, correction=0)


def choose_ridge(z: Tensor, y: Tensor, ridges: Sequence[float] = RIDGES) -> tuple[Tensor, Tensor]:
    """Return for each factor the ridge (k) with the best held-out R^2, and all R^2 (ridges, k).

    The best of many is optimistic: report `held_out_r2` with ridge None.
    """
    each = torch.tensor(ridges, dtype=torch.float64)
    k = y.shape[1]
    scores = held_out_r2(z, y.repeat(1, len(each)), each.repeat_interleave(k)).view(len(each), k)
    return each[scores.nan_to_num(nan=-torch.inf, neginf=-torch.inf).argmax(0)], scores


# -- directions ------------------------------------------------------------------------------------------------------------


def plain(weights: Tensor) -> Tensor:
    """Return the paper's directions: rows of W, of which a step of 1 adds 1 to the prediction."""
    return weights / weights.square().sum(1, keepdim=True)


def orthogonalised(weights: Tensor) -> Tensor:
    """Return directions D with W D' = I: a step moves its own prediction and no other.

    Each row is W's own, less its projection on the other rows. A step of 1 adds 1, as in `plain`.
    """
    return torch.linalg.pinv(weights.double()).T.to(weights)


def joint(z: Tensor, y: Tensor) -> Tensor:
    """Return the regression of codes on all factors at once: rows of (Cov(z, y) Cov(y)^-1)'.

    How the mean code changes with one factor while the others are held fixed. Where codes predict factors without error
    and Cov(z) = I it is the same as `orthogonalised`. It inverts no (d, d) matrix and needs no ridge.
    """
    z64, y64 = z.double(), y.double()
    return (covariance(z64, y64) @ torch.linalg.pinv(covariance(y64, y64), hermitian=True)).T.to(z)


def scaled(weights: Tensor, directions: Tensor) -> Tensor:
    """Return directions at the length at which a step of 1 adds 1 to their own prediction."""
    return directions / (weights * directions).sum(1, keepdim=True)


def foreseen(weights: Tensor, directions: Tensor) -> Tensor:
    """Return the entanglement matrix (k, k) that W foresees: (w_j . d_i) / (w_i . d_i)."""
    return scaled(weights, directions) @ weights.T


def nearest_orthonormal(directions: Tensor) -> Tensor:
    """Return the orthonormal rows nearest to unit directions (polar factor, Loewdin 1950)."""
    u, _, vt = torch.linalg.svd(F.normalize(directions.double()), full_matrices=False)
    return (u @ vt).to(directions)


def walk(z: Tensor, model: LinearModel, direction: Tensor, factor: int, targets: Tensor) -> Tensor:
    """Return codes (p, d) on the line z + t direction at which predictions are targets.

    Args:
        z: where the line starts (d).
        model: that predicts.
        direction: (d).
        factor: its number.
        targets: predictions (p).
    """
    t = (targets - model(z)[factor]) / (model.weights[factor] @ direction)
    return z + t[:, None] * direction


# -- what a walk did -------------------------------------------------------------------------------------------------------


def slopes(doses: Tensor, measured: Tensor) -> Tensor:
    """Return least-squares slopes (..., k) of measured factors (..., p, k) against doses (p)."""
    x = doses - doses.mean()
    return torch.einsum("p,...pk->...k", x, measured) / x.square().sum()


def entanglement(doses: Tensor, measured: Tensor) -> Tensor:
    """Return what walks along each direction did to each factor, per unit of dose.

    Args:
        doses: (p), in standard deviations of the population.
        measured: (k directions, n walks, p doses, k factors), in the same unit.

    Returns:
        Matrix (k, k), a row a direction, a mean over walks. The diagonal is the response (1: as predicted), the rest is
        drift. Walks with a nan in any factor are left out; a row without a whole walk is nan.
    """
    found = slopes(doses, measured)
    whole = found.isfinite().all(2, keepdim=True)
    return found.where(whole, torch.nan).nanmean(1)


def purity(matrix: Tensor) -> Tensor:
    """Return the share of all change that is wanted: mean over i of max(E_ii, 0) / sum_j |E_ij|.

    1: nothing else moves. 1/k: all factors move alike. 0: only others move, or each factor moves the wrong way. It is nan
    where along some direction nothing moves at all.

    Args:
        matrix: of `entanglement` (..., k, k).
    """
    wanted = matrix.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    return (wanted / matrix.abs().sum(-1)).mean(-1)


def walk_purities(doses: Tensor, measured: Tensor) -> Tensor:
    """Return the purity (n) of each walk's own matrix; arguments as in `entanglement`.

    It is nan for a walk with a nan.
    """
    return purity(slopes(doses, measured).movedim(0, 1))


def monotonicity(doses: Tensor, values: Tensor) -> float:
    """Return Spearman's correlation of doses (p) and values (p); nan where nothing changed."""
    if not values.isfinite().all() or values.unique().numel() == 1:
        return float("nan")
    return float(stats.spearmanr(doses, values).statistic)


# -- moving about in latent space ------------------------------------------------------------------------------------------


def linear(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return codes (p, d) on the straight line from a to b, each (d), at t (p).

    Half-way between two Gaussian codes a code is too short.
    """
    return a + t[:, None] * (b - a)


def spherical(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Return codes (p, d) on the arc from a to b, each (d), at t (p).

    Directions follow the great circle (slerp). Lengths lie between those of a and b.
    """
    u, v = F.normalize(a, dim=0), F.normalize(b, dim=0)
    angle = torch.arccos((u @ v).clamp(-1, 1))
    if angle < 1e-6:
        return linear(a, b, t)
    arc = (torch.sin((1 - t) * angle)[:, None] * u + torch.sin(t * angle)[:, None] * v) / torch.sin(angle)
    return ((1 - t) * a.norm() + t * b.norm())[:, None] * arc


def project(
    generate: Callable[[Tensor], Tensor], x: Tensor, z: Tensor, steps: int, rate: float = 0.05
) -> tuple[Tensor, list[float]]:
    """Search a code whose volume is near another in L1, by Adam.

    Args:
        generate: codes (1, d) to volumes like x, differentiable.
        x: the volume that is wanted.
        z: the code (1, d) to start from.
        steps: of Adam.
        rate: its learning rate.

    Returns:
        The best code (1, d), and the errors, the first of them that of z.
    """
    z = z.clone().requires_grad_()
    adam, errors, best = torch.optim.Adam([z], rate), [], z
    for step in range(steps + 1):
        loss = F.l1_loss(generate(z), x)
        errors.append(float(loss.detach()))
        if errors[-1] == min(errors):
            best = z.detach().clone()
        if step < steps:
            (z.grad,) = torch.autograd.grad(loss, z)
            adam.step()
    return best, errors
