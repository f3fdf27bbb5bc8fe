"""Which volumes the adaptation loss prefers: its value for real, average, dimmed and blurred T1 beside a model's output."""

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from scipy import stats
from torch import nn

from medsynth_lib.models.divergence import kl
from medsynth_lib.settings import SliceVAESettings
from medsynth_lib.training.adaptation import Posterior, aggregate, posterior, source_posteriors

OUTPUT = "output at B"  # what the others are compared with
MARGIN = 0.01  # share of the output's mean loss that a preferred volume's advantage exceeds


@torch.no_grad()
def encode_all(
    encoder: nn.Module, settings: SliceVAESettings, source_t1: torch.Tensor, candidates: Mapping[str, Sequence]
) -> tuple[Posterior, dict[str, list[Posterior]]]:
    """Encode source T1 and candidate volumes.

    Args:
        encoder: of a slice-VAE, in the mode it shall have.
        settings: of the slice-VAE.
        source_t1: (n, 1, x, y, z).
        candidates: volumes (1, x, y, z) by name, one a test subject.

    Returns:
        The aggregated posterior of the source T1, and each candidate's posteriors, one a subject.
    """
    prior = aggregate(*source_posteriors(encoder, source_t1, settings))
    seen = {name: [posterior(encoder, v[None], settings) for v in volumes] for name, volumes in candidates.items()}
    return prior, seen


def divergences(prior: Posterior, seen: Mapping[str, Sequence[Posterior]], divergence: Callable = kl) -> pd.DataFrame:
    """Tabulate the mean divergence per latent element from a prior to posteriors.

    Args:
        prior: such as the aggregated posterior of source T1.
        seen: posteriors by candidate, one a subject.
        divergence: of two Gaussians, element by element.

    Returns:
        A row a subject, a column a candidate.
    """
    return pd.DataFrame({name: [float(divergence(prior, q).mean()) for q in found] for name, found in seen.items()})


def divergence_of_aggregates(prior: Posterior, seen: Mapping[str, Sequence[Posterior]]) -> pd.DataFrame:
    """Tabulate the KL from a prior to aggregated posteriors, as equation (2) is printed."""
    pooled = {name: [aggregate(*map(torch.cat, zip(*found, strict=True)))] for name, found in seen.items()}
    return divergences(prior, pooled)


def means_and_sds(losses: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Write mean ± standard deviation over subjects: a row a candidate, a column a loss."""
    digits = "{:.3f}".format
    columns = {}
    for name, values in losses.items():
        columns[name] = values.mean().map(digits) + (" ± " + values.std().map(digits) if len(values) > 1 else "")
    return pd.DataFrame(columns)


def preferred(values: pd.DataFrame) -> list[str]:
    """List the candidates whose loss is lower than that of the output.

    Args:
        values: of `divergences`.

    Returns:
        Candidates whose difference from the output has a 95 % interval (Student's t over subjects) below minus
        `MARGIN` of the output's mean loss.
    """
    gain = values.sub(values[OUTPUT], axis=0)
    half = stats.t.ppf(0.975, len(values) - 1) * gain.sem() if len(values) > 1 else 0
    return list(gain.columns[gain.mean() + half < -MARGIN * values[OUTPUT].mean()])
