"""What lesson 07 asks of latent directions: where they come from, what walks along them do, and which kind is cleanest.

Codes z are (n, d), factors y (n, k) in standard deviations of the population, directions (k, d), doses (p). "Walked" factors
are (k directions, n starts, p doses, k factors). Kinds of directions have a name such as "plain, generated".
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import nn

from medsynth_lib.evaluation import latent
from medsynth_lib.evaluation.image import psnr, ssim
from medsynth_lib.evaluation.latent import LinearModel
from medsynth_lib.evaluation.statistics import paired_interval
from medsynth_lib.experiments.latent_domain import Domain
from medsynth_lib.training.hagan_information import information_bound

Sets = dict[str, tuple[torch.Tensor, torch.Tensor]]  # where codes and factors come from -> (z, y)
Directions = dict[str, tuple[LinearModel, torch.Tensor]]  # name of a kind -> (linear model, directions)
Walked = dict[str, torch.Tensor]  # name of a kind -> factors measured along its walks

FEWEST = 4  # starts that a comparison of two kinds needs


# -- where directions come from --------------------------------------------------------------------------------------------


def sample_factors(domain: Domain, count: int, length: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Draw codes from N(0, I) and measure their volumes.

    Args:
        domain: generator and measurement.
        count: n, how many codes.
        length: d, numbers of a code.
        seed: of the draw.

    Returns:
        Codes (n, d), factors (n, k), and which of the volumes could be measured (n).
    """
    z = torch.randn(count, length, generator=torch.Generator().manual_seed(seed))
    y = domain.measured_codes(z)
    return z, y, y.isfinite().all(1)


def training_sets(
    domain: Domain, cubes: Sequence[torch.Tensor], sample: tuple[torch.Tensor, ...], truth: torch.Tensor | None,
    known: torch.Tensor,
) -> Sets:  # fmt: skip
    """Collect the codes and factors that directions are fitted to.

    The first set is the base of what follows.

    Args:
        domain: generator, encoder and measurement.
        cubes: training volumes (1, S, S, S).
        sample: what `sample_factors` returns.
        truth: the simulator's factors of the cubes; None for real data.
        known: which of the cubes could be measured.

    Returns:
        "generated", unless fewer than d/2 generated volumes could be measured; "encoded"; and, with a truth, "true factors".
    """
    z, y, usable = sample
    codes = domain.codes(cubes)[known]
    sets = {"generated": (z[usable], y[usable])} if usable.sum() >= z.shape[1] // 2 else {}
    sets["encoded"] = codes, domain.standardised(domain.population)[known]
    if truth is not None:
        sets["true factors"] = codes, truth[known]
    return sets


def fit_directions(sets: Sets, names: Sequence[str]) -> tuple[dict[str, LinearModel], pd.DataFrame]:
    """Fit a linear model to every set, at the ridges that predict held-out codes best.

    Args:
        sets: codes and factors by where they come from.
        names: of the factors.

    Returns:
        The models by set, and a table: for each set and factor R^2 fitted, R^2 held out, R^2 held out with the ridge chosen
        anew in each fold, and the ridge chosen on all codes.
    """
    rows, models = [], {}
    for name, (z, y) in sets.items():
        ridge, _ = latent.choose_ridge(z, y)
        models[name] = latent.least_squares(z, y, ridge)
        found = {
            "R^2 fitted, ridge 0": r_squared(latent.least_squares(z, y)(z), y),
            "R^2 held out, ridge 0": latent.held_out_r2(z, y),
            "R^2 held out, nested choice of ridge": latent.held_out_r2(z, y, None),
            "ridge, chosen on all": ridge,
        }
        rows += [[name, len(z), kind, *values.tolist()] for kind, values in found.items()]
    return models, pd.DataFrame(rows, columns=["codes from", "n", "", *names])


def r_squared(predicted: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Take R^2 (k) of predictions (n, k) of factors (n, k)."""
    return 1 - (y - predicted).square().mean(0) / y.var(0, correction=0)


def learning_curve(z: torch.Tensor, y: torch.Tensor) -> pd.DataFrame:
    """Fit directions to more and more codes; the last fifth of the codes is held out.

    Args:
        z: codes (n, d).
        y: factors (n, k).

    Returns:
        Mean R^2 over the factors, a row a number of codes, as a multiple of d: fitted and held out with ridge 0, and held out
        with the ridge that predicts best.
    """
    d, rows, left = z.shape[1], {}, max(2, len(z) // 5)
    for n in (m for m in (d // 2, d, 2 * d, 4 * d, 8 * d) if m <= len(z) - left):
        ridge, _ = latent.choose_ridge(z[:n], y[:n])
        loose, ridged = latent.least_squares(z[:n], y[:n]), latent.least_squares(z[:n], y[:n], ridge)
        tests = (loose, z[:n], y[:n]), (loose, z[-left:], y[-left:]), (ridged, z[-left:], y[-left:])
        rows[n / d] = [float(r_squared(model(a), b).mean()) for model, a, b in tests]
    return pd.DataFrame(rows, ["fitted, ridge 0", "held out, ridge 0", "held out, chosen ridge"]).T


def kinds_of_directions(sets: Sets, models: Mapping[str, LinearModel], everywhere: bool = True) -> Directions:
    """Make plain, orthogonalised and joint directions.

    Plain ones are of every set, the others of the base or of every set.

    Args:
        sets: codes and factors by where they come from; the first one is the base.
        models: of `fit_directions`.
        everywhere: hold the other factors fixed in every set, not in the base alone.
    """
    kinds = {}
    for n, (name, (z, y)) in enumerate(sets.items()):
        model = models[name]
        kinds[f"plain, {name}"] = model, latent.plain(model.weights)
        if n == 0 or everywhere:
            kinds[f"orthogonalised, {name}"] = model, latent.orthogonalised(model.weights)
            kinds[f"joint, {name}"] = model, latent.joint(z, y)
    return kinds


# -- walks -----------------------------------------------------------------------------------------------------------------


def starting_codes(sample: tuple[torch.Tensor, ...], count: int) -> torch.Tensor:
    """Take the first codes of `sample_factors` that could be measured.

    Where too few could, take the first codes.
    """
    z, _, usable = sample
    return z[usable][:count] if usable.sum() >= count else z[:count]


def walk_codes(starts: torch.Tensor, model: LinearModel, directions: torch.Tensor, doses: torch.Tensor) -> torch.Tensor:
    """Walk along every direction until the model predicts the start's factor plus each dose.

    Args:
        starts: codes (n, d).
        model: predicts factors.
        directions: (k, d).
        doses: (p), in standard deviations of the population.

    Returns:
        Codes (k, n, p, d).
    """
    return torch.stack(
        [
            torch.stack([latent.walk(z, model, direction, i, model(z)[i] + doses) for z in starts])
            for i, direction in enumerate(directions)
        ]
    )


def measure_walks(domain: Domain, kinds: Directions, starts: torch.Tensor, doses: torch.Tensor) -> Walked:
    """Measure the factors of all volumes along the walks of every kind of directions."""
    codes = torch.stack([walk_codes(starts, *pair, doses) for pair in kinds.values()])
    return dict(zip(kinds, domain.measured_codes(codes), strict=True))


def walk_rows(domain: Domain, codes: torch.Tensor) -> list[tuple[str, str, list]]:
    """Generate the volumes of one walk along each direction, for `display.latent.walk_figure`.

    Args:
        domain: generator and masks.
        codes: (k, p, d).

    Returns:
        A row a direction: the factor's name, the plane to show, and (volume, mask, text) of each volume. The text is the
        mask's share of the whole volume; of emphysema, its share of the lung.
    """
    rows, plane = [], "coronal" if domain.modality == "ct" else "axial"
    for factor, path in zip(domain.names, codes, strict=True):
        pictures = []
        for volume in torch.cat([domain.generate(z[None]) for z in path]):
            masks = domain.masks(volume)
            whole = masks["lung"] if factor == "log emphysema" else torch.ones_like(masks[factor])
            share = (
                f"{100 * float(masks[factor].sum() / whole.sum()):.2f} %" if masks[domain.names[0]].any() else "no lung"
            )
            pictures.append((volume, masks[factor], share))
        rows.append((factor.removeprefix("log "), plane, pictures))
    return rows


def monotonicity_table(walked: Walked, names: Sequence[str], doses: torch.Tensor) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Average Spearman's correlation of dose and response over whole walks.

    A walk is whole if it could be measured from end to end.

    Returns:
        A row a kind of directions, a column a factor; and the same as text, with the number of walks.
    """
    table, counted = {}, {}
    for name, y in walked.items():
        found = [[latent.monotonicity(doses, run[:, i]) for run in line] for i, line in enumerate(y)]
        found = [[r for r in line if np.isfinite(r)] for line in found]
        table[name] = [np.mean(line or [np.nan]) for line in found]
        counted[name] = [f"{np.mean(line or [np.nan]):.2f} ({len(line)} of {y.shape[1]})" for line in found]
    return pd.DataFrame(table, names).T, pd.DataFrame(counted, names).T


def entanglements(walked: Walked, doses: torch.Tensor) -> dict[str, torch.Tensor]:
    """Take the entanglement matrix (k, k) of every kind of directions."""
    return {name: latent.entanglement(doses, y) for name, y in walked.items()}


def whole_walks(walked: Walked) -> dict[str, list[str]]:
    """Count whole walks of every kind: "m of n" for each direction.

    A walk is whole if it could be measured from end to end.
    """
    return {
        name: [f"{m} of {y.shape[1]}" for m in y.isfinite().flatten(2).all(2).sum(1).tolist()]
        for name, y in walked.items()
    }


# -- which kind is cleanest ------------------------------------------------------------------------------------------------


def purities(walked: Walked, doses: torch.Tensor) -> dict[str, torch.Tensor]:
    """Take the purity (n) of every start's walks, by kind of directions.

    It is nan where a walk could not be measured.
    """
    return {name: latent.walk_purities(doses, y) for name, y in walked.items()}


def purity_table(walked: Walked, kinds: Directions, doses: torch.Tensor) -> pd.DataFrame:
    """Rate kinds of directions by purity and response, a row each.

    Args:
        walked: measured factors by kind.
        kinds: the same kinds of directions.
        doses: (p).

    Returns:
        The purity of the mean matrix; that of one start, with its standard error over starts; the mean and the least response
        (1: as predicted); the starts that could be measured; and the longest step of one standard deviation, over sqrt(d).
    """
    rows = {}
    for name, y in walked.items():
        each, matrix, (model, directions) = latent.walk_purities(doses, y), latent.entanglement(doses, y), kinds[name]
        each = each[each.isfinite()]
        error = float(each.std()) / len(each) ** 0.5 if len(each) > 2 else float("nan")
        steps = latent.scaled(model.weights, directions).norm(dim=1) / directions.shape[1] ** 0.5
        diagonal = matrix.diagonal()
        values = latent.purity(matrix), each.mean(), error, diagonal.mean(), diagonal.min(), len(each), steps.max()
        rows[name] = [float(v) for v in values]
    columns = ["purity of the mean", "purity of one start", "standard error", "response", "least response", "starts"]
    return pd.DataFrame(rows, [*columns, "longest step of 1 SD / sqrt(d)"]).T


def cleanest(table: pd.DataFrame) -> str:
    """Name the kind with the highest purity, of those with four starts or more.

    The starts are those of one purity; without such a kind it is the first.
    """
    enough = table.query("starts >= @FEWEST", local_dict={"FEWEST": FEWEST})["purity of one start"]
    return enough.idxmax() if len(enough) else table.index[0]


def against_cleanest(each: Mapping[str, torch.Tensor], best: str) -> pd.DataFrame:
    """Compare the purities of one kind with those of every other kind.

    Only starts count that both kinds have.

    Args:
        each: `purities` by kind.
        best: the kind to compare.

    Returns:
        A row a kind: starts in common, how much higher the best one's purity is, half of the 95 % interval, and whether the
        two are told apart.
    """
    rows = {}
    for name, values in each.items():
        n, gain, width = paired_interval(each[best], values)
        rows[name] = n, gain, width, "too few starts" if n < FEWEST else "yes" if gain > width else "no"
    columns = ["starts in common", "purity higher by", "95 % interval +-", "told apart"]
    return pd.DataFrame(rows, columns).T.drop(index=best)


def common_purities(matrices: Mapping[str, torch.Tensor], names: Sequence[str]) -> pd.DataFrame:
    """Take the wanted share of all change, a row a factor.

    Only factors count that all kinds could be measured for.

    Args:
        matrices: entanglement matrices (k, k) by kind.
        names: of the factors.
    """
    shares = {name: (m.diagonal().clamp(min=0) / m.abs().sum(1)).tolist() for name, m in matrices.items()}
    return pd.DataFrame(shares, names).dropna()


# -- recovery and information ----------------------------------------------------------------------------------------------


def mean_change(domain: Domain, starts: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """Measure what adding a vector (d) to codes (n, d) changes.

    Returns: means (k) over the starts that could be measured.
    """
    return (domain.measured_codes(starts + added) - domain.measured_codes(starts)).nanmean(0)


def recover_twice(domain: Domain, volume: torch.Tensor, steps: int) -> tuple[list[tuple[torch.Tensor, str]], list]:
    """Recover a held-out volume from the encoder's code, and from that code optimised.

    Args:
        domain: generator and encoder.
        volume: (1, S, S, S) in [-1, 1].
        steps: of the optimisation.

    Returns:
        Pictures (S, S, S) with their names: the volume, each recovery and its error (0 black, 0.5 white), and what optimising
        gained (white: 0.25 less error). And for each of the two codes L1, PSNR in dB, SSIM and |z| / sqrt(d).
    """
    common, high = (domain.networks[f"mean {n}"] for n in ("G^A", "G^H"))
    z0 = domain.codes([volume])
    on_device = volume[None].to(domain.device), z0.to(domain.device)
    z1, errors = latent.project(lambda z: high(common(z)), *on_device, steps)
    x, images, scores, differences = volume[0], [(volume[0], "held out")], [], []
    for z, l1, name in ((z0, errors[0], "encoder"), (z1, min(errors), "optimised")):
        found = domain.generate(z)[0, 0]
        pair = (found + 1) / 2, (x + 1) / 2
        scores.append([l1, psnr(*pair), ssim(*pair), float(z.norm()) / z.shape[1] ** 0.5])
        differences.append((found - x).abs())
        images += [(found, f"{name}, {scores[-1][1]:.1f} dB"), (4 * differences[-1] - 1, "its error")]
    return [*images, (4 * (differences[0] - differences[1]), "gained")], scores


@torch.no_grad()
def mean_bound(networks: Mapping[str, nn.Module], basis: torch.Tensor, seed: int = 0) -> tuple[float, float]:
    """Estimate the bound of I(c; G(z)) from 64 Gaussian codes.

    The generator is the one that learned, with its Q.

    Args:
        networks: of a HAGAN, and "Q".
        basis: U (k, d), orthonormal; c = U z.
        seed: of the codes.

    Returns:
        The bound in nats, and its standard error.
    """
    device = next(networks["G^A"].parameters()).device
    z = torch.randn(64, basis.shape[1], generator=torch.Generator().manual_seed(seed)).to(device)
    q, basis = networks["Q"].to(device), basis.to(device)
    low = (networks["G^L"](networks["G^A"](part)) for part in z.split(8))
    parts = torch.stack([information_bound(part @ basis.T, *q(x)) for part, x in zip(z.split(8), low, strict=True)])
    return float(parts.mean()), float(parts.std()) / len(parts) ** 0.5
