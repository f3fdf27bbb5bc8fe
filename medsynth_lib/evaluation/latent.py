"""Directions in a generator's latent space: found by least squares, walked along, and held against what they should not move.

HA-GAN paper, section IV-D (Figs. 7 and 8) and its discussion C, where entanglement is named and not measured. Codes z are
(n, d) tensors and factors y (n, k), both in any unit; directions are (k, d), one row a factor.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy import stats

RIDGES = (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass
class LinearModel:
    """Section IV-D's predictor of factors from codes: y = W z + b, W (k, d), b (k)."""

    weights: torch.Tensor
    offset: torch.Tensor

    def __call__(self, z):
        return z @ self.weights.T + self.offset


def covariance(a, b):
    """Cov(a, b) of two sets of paired rows (n, i) and (n, j): (i, j)."""
    return (a - a.mean(0)).T @ (b - b.mean(0)) / len(a)


def least_squares(z, y, ridge=0.0):
    """W = Cov(y, z) (Cov(z) + ridge v I)^+, where v is the codes' mean variance; ridge 0 is the paper's least squares.

    ridge: a number, or one for each factor (k). With fewer codes than they have numbers, ridge 0 gives the shortest W of those
    that fit exactly, and fits noise. Raises ValueError for fewer than two codes.
    """
    if len(z) < 2:
        raise ValueError(f"{len(z)} codes are too few to fit a direction to")
    z64, y64 = z.double(), y.double()
    variances, axes = torch.linalg.eigh(covariance(z64, z64))
    ridges = torch.as_tensor(ridge, dtype=torch.float64).expand(y.shape[1])[:, None]
    spread = variances.clamp(min=0) + ridges * variances.mean()  # (k, d)
    inverse = torch.where(spread > 1e-12 * variances.max(), 1 / spread, 0)  # (.)^+: an axis that no code uses gets no weight
    weights = (covariance(y64, z64) @ axes * inverse) @ axes.T
    return LinearModel(weights.to(z), (y64.mean(0) - weights @ z64.mean(0)).to(z))


def held_out_r2(z, y, ridge=0.0, folds=5, seed=0):
    """R^2 (k) of predictions for codes that were left out of the fit; at most 1, below 0 where the mean of all predicts better.
    (That mean knows the codes that are left out: of factors that have nothing to do with codes, R^2 is a little below 0 with
    ridge None, and far below without a ridge where people are hardly more than the elements of a code.)

    ridge: as in `least_squares`; None chooses it anew for each fold, from the other folds alone, so that no code helps to choose
    the ridge by which it is predicted.
    """
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    predicted = torch.empty_like(y)
    for part in order.chunk(folds):
        rest = order[~torch.isin(order, part)]
        used = choose_ridge(z[rest], y[rest])[0] if ridge is None else ridge
        predicted[part] = least_squares(z[rest], y[rest], used)(z[part])
    return 1 - (y - predicted).square().mean(0) / y.var(0, correction=0)


def choose_ridge(z, y, ridges=RIDGES):
    """For each factor the ridge (k) with the best held-out R^2, and R^2 of all (number of ridges, k).

    The best of many is optimistic: report `held_out_r2` with ridge None.
    """
    each = torch.tensor(ridges, dtype=torch.float64)
    k = y.shape[1]
    scores = held_out_r2(z, y.repeat(1, len(each)), each.repeat_interleave(k)).view(len(each), k)
    return each[scores.nan_to_num(nan=-torch.inf, neginf=-torch.inf).argmax(0)], scores


# -- directions ------------------------------------------------------------------------------------------------------------


def plain(weights):
    """The paper's directions: the rows of W, scaled so that a step of 1 adds 1 to the predicted factor."""
    return weights / weights.square().sum(1, keepdim=True)


def orthogonalised(weights):
    """Directions D with W D' = I: a step of 1 adds 1 to its predicted factor and leaves the other predictions alone.

    Each row is W's own, less its projection on the other rows, at the scale above.
    """
    return torch.linalg.pinv(weights.double()).T.to(weights)


def joint(z, y):
    """The regression turned round, codes on all factors at once: rows of (Cov(z, y) Cov(y)^-1)', (k, d).

    How the mean code changes with one factor while the others are held fixed. Where codes predict factors without error
    and Cov(z) = I it is the same as `orthogonalised`. It inverts no (d, d) matrix and needs no ridge.
    """
    z64, y64 = z.double(), y.double()
    return (covariance(z64, y64) @ torch.linalg.pinv(covariance(y64, y64), hermitian=True)).T.to(z)


def scaled(weights, directions):
    """Directions (k, d) at the length at which a step of 1 adds 1 to their own predicted factor, as `walk` goes along them."""
    return directions / (weights * directions).sum(1, keepdim=True)


def foreseen(weights, directions):
    """The entanglement matrix (k, k) that a linear model foresees for walks: (w_j . d_i) / (w_i . d_i), 1 on the diagonal."""
    return scaled(weights, directions) @ weights.T


def nearest_orthonormal(directions):
    """The (k, d) orthonormal rows nearest to these directions' unit vectors (polar factor, Loewdin 1950)."""
    u, _, vt = torch.linalg.svd(F.normalize(directions.double()), full_matrices=False)
    return (u @ vt).to(directions)


def walk(z, model, direction, factor, targets):
    """Codes (p, d) on the line z + t * direction (d) at which the model predicts ``targets`` (p) for a factor (its number)."""
    t = (targets - model(z)[factor]) / (model.weights[factor] @ direction)
    return z + t[:, None] * direction


# -- what a walk did -------------------------------------------------------------------------------------------------------


def slopes(doses, measured):
    """Least-squares slopes (..., k) of measured factors (..., p, k) against the doses (p) of a walk."""
    x = doses - doses.mean()
    return torch.einsum("p,...pk->...k", x, measured) / x.square().sum()


def entanglement(doses, measured):
    """Matrix (k, k): row i, what a walk along direction i really did to each factor, per unit of its dose; a mean over walks.

    measured: (k directions, n walks, p doses, k factors), in standard deviations of the population, as the doses (p).
    The diagonal is the response (1: predicted and found agree), the rest is drift. Walks with a nan, in whichever factor, are
    left out; a row without any whole walk is nan.
    """
    found = slopes(doses, measured)
    whole = found.isfinite().all(2, keepdim=True)
    return found.where(whole, torch.nan).nanmean(1)


def purity(matrix):
    """Share of all change that is the wanted one: mean over i of max(E_ii, 0) / sum_j |E_ij|, for matrices (..., k, k).

    1: nothing else moves; 1/k: all factors move alike; 0: only others move, or each factor moves the wrong way; nan where along
    some direction nothing moves at all.
    """
    wanted = matrix.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    return (wanted / matrix.abs().sum(-1)).mean(-1)


def walk_purities(doses, measured):
    """Purity (n) of each walk's own matrix, from the arguments of `entanglement`; nan where a walk has one."""
    return purity(slopes(doses, measured).movedim(0, 1))


def monotonicity(doses, values):
    """Spearman's rank correlation of a walk's doses (p) with what was measured (p); nan where nothing changed."""
    if not values.isfinite().all() or values.unique().numel() == 1:
        return float("nan")
    return float(stats.spearmanr(doses, values).statistic)


# -- moving about in latent space ------------------------------------------------------------------------------------------


def linear(a, b, t):
    """Codes (p, d) on the straight line from a to b (d) at t (p). Half-way between two Gaussian codes it is too short."""
    return a + t[:, None] * (b - a)


def spherical(a, b, t):
    """Codes (p, d) on the arc from a to b (d) at t (p): slerp of the directions, with lengths between those of a and b."""
    u, v = F.normalize(a, dim=0), F.normalize(b, dim=0)
    angle = torch.arccos((u @ v).clamp(-1, 1))
    if angle < 1e-6:
        return linear(a, b, t)
    arc = (torch.sin((1 - t) * angle)[:, None] * u + torch.sin(t * angle)[:, None] * v) / torch.sin(angle)
    return ((1 - t) * a.norm() + t * b.norm())[:, None] * arc


def project(generate, x, z, steps, rate=0.05):
    """A code (1, d) whose volume is near ``x`` in L1, by Adam from ``z``; and the errors, the first of them that of ``z``.

    generate: codes (1, d) to volumes like x, differentiable.
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
