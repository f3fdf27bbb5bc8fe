"""How much each cause of the domain shift costs a source model: by its inputs, and by what counts as the truth."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch

from medsynth_lib.data.simulation.scanner import CAUSES, Site, mixed_site
from medsynth_lib.evaluation.image import psnr
from medsynth_lib.experiments.adaptation.direction import Sample

State = tuple[str, str]  # ("each alone" or "in order", the last cause that was taken from the target)
ALONE, ORDER = "each alone", "in order"
START, VISIT = "none (site A)", "another visit"


def site_states(source: Site, target: Site) -> dict[State, Site]:
    """Make the scanners between two sites: each cause of the shift alone, and in order.

    Another visit is the source with noise and coil field drawn as at the target. "In order" begins as the first cause
    alone; its last state is the target itself, which needs no scanner here.
    """
    order = list(CAUSES)
    alone = {START: source} | {cause: mixed_site(source, target, cause) for cause in order}
    alone[VISIT] = replace(source, name=target.name)
    states = {(ALONE, cause): site for cause, site in alone.items()}
    return states | {(ORDER, order[k]): mixed_site(source, target, *order[: k + 1]) for k in range(1, len(order))}


def state_scores(predict: Callable[[Sample], torch.Tensor], scan: Sample, home: Sample) -> dict[str, float]:
    """Score a source model's output on a scan.

    Args:
        predict: the source model, sample -> T1 (1, x, y, z).
        scan: of a subject in some state.
        home: of the same subject at the source.

    Returns:
        PSNR in dB inside both brains. "inputs": of the output against the source's T1. "output at Y_t": of the output against
        the scan's own T1. "true T1": of the scan's T1 against the source's.
    """
    output, mask = predict(scan), scan["mask"] & home["mask"]
    pairs = {"inputs": (output, home["y"]), "output at Y_t": (output, scan["y"]), "true T1": (scan["y"], home["y"])}
    return {name: psnr(*pair, mask) for name, pair in pairs.items()}


def score_states(
    predict: Callable[[Sample], torch.Tensor],
    states: Iterable[State],
    scanned: Iterable[Sequence[Sample]],
    target: Iterable[Sample],
) -> dict[str, pd.DataFrame]:
    """Average `state_scores` over subjects.

    Args:
        predict: the source model, sample -> T1 (1, x, y, z).
        states: as `site_states` names them.
        scanned: subject by subject, its samples in these states; the first is at the source.
        target: the same subjects' samples at the target.

    Returns:
        "each alone" and "in order": tables with a row a cause and the columns of `state_scores`, in dB.
    """
    scores: dict[State, list] = {state: [] for state in [*states, (ORDER, VISIT)]}
    for samples, last in zip(scanned, target, strict=True):
        for state, sample in zip(scores, [*samples, last], strict=True):
            scores[state].append(state_scores(predict, sample, samples[0]))
    mean = {state: pd.DataFrame(rows).mean(skipna=False) for state, rows in scores.items()}
    rows = [START, *CAUSES, VISIT]
    return {way: pd.DataFrame({r: mean.get((way, r), mean[ALONE, r]) for r in rows}).T for way in (ALONE, ORDER)}


def decibels_lost(scores: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Turn the tables of `score_states` into dB lost, by the inputs and by the truth.

    Returns:
        As `score_states`: a row a cause and a row "sum"; the column "together" adds the two parts. "In order" counts each
        cause from the state before.
    """
    lost = {}
    for way, table in scores.items():
        parts = {
            "by the inputs": table.loc[START, "inputs"] - table["inputs"],
            "by the truth": table["inputs"] - table["output at Y_t"],
        }
        lost[way] = pd.DataFrame(parts)
    lost[ORDER] = lost[ORDER].diff()
    lost = {way: table.drop(START) for way, table in lost.items()}
    for table in lost.values():
        table.loc["sum"] = table.sum()
        table["together"] = table.sum(axis=1)
    return lost
