"""Lesson 03's comparisons of losses, norms and batch sizes: a short training, its scores, and the sweep of longer ones."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from medsynth_lib.data.preparation.pairs import PairedVolumes
from medsynth_lib.data.simulation.dataset import describe
from medsynth_lib.evaluation.distribution import neighbour_correlation, sliced_wasserstein
from medsynth_lib.evaluation.slice_model import SliceModel, decode_volumes, mean_codes, reconstruct
from medsynth_lib.experiments.lesson_data import lesson_contract, lesson_manifest, volumes
from medsynth_lib.experiments.short_training import train_briefly
from medsynth_lib.experiments.sweep import Cell, Group, Sweep
from medsynth_lib.files import fingerprint
from medsynth_lib.settings import Lesson03Settings, SliceVAESettings, load_settings
from medsynth_lib.training import svae
from medsynth_lib.training.loop import NonFiniteLoss

VERSION = 1  # raise when scores or trainings below change: rows of another version are not reused
TABLE = "svae"  # notebooks/sweeps/svae.csv; not all of its trainings were run with every seed
SITE = "SIMA"

Data = tuple[PairedVolumes, PairedVolumes]  # training and tuning volumes


def short_settings(settings: Lesson03Settings, seed: int, **changes: Any) -> SliceVAESettings:
    """Return settings of a short training: half the usual width, 16 random slices a step.

    Args:
        settings: of lesson 03.
        seed: of the training.
        changes: to the slice-VAE's settings.
    """
    width = max(16, settings.svae.width // 2)
    short: dict[str, Any] = dict(seed=seed, width=width, slices="random 16")
    return replace(settings.svae, **(short | changes))


def train_short(settings: SliceVAESettings, train: Sequence, tune: Sequence, steps: int) -> tuple[nn.Module, pd.Series]:
    """Train a slice-VAE from its beginning, without keeping it.

    Args:
        settings: of the slice-VAE; `steps` and `validate_every` are not read.
        train, tune: data sets of T1.
        steps: of the training.

    Returns:
        The VAE in evaluation mode, and the last row of its history.
    """
    torch.manual_seed(settings.seed)
    algorithm = svae.SliceVAE(settings)
    last = train_briefly(algorithm, train, tune, steps, seed=settings.seed)
    return algorithm.networks["vae"].eval(), last


def psnr_of(mse: float) -> float:
    """Return the PSNR in dB of a mean squared error, data range 1."""
    return -10 * np.log10(float(mse))


def known_slices(
    vae: nn.Module,
    settings: SliceVAESettings,
    t1: torch.Tensor,
    held_out: torch.Tensor,
    masks: torch.Tensor,
    seed: int = 0,
) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
    """Score how well a slice-VAE redraws and samples the slices that it was trained on.

    Args:
        vae: with encoder and decoder.
        settings: of the slice-VAE; `slices` says which slices it knows.
        t1: training volumes (n, 1, x, y, z) in [0, 1].
        held_out: other volumes (m, 1, x, y, z).
        masks: brains of the held-out volumes, of the same shape.
        seed: of the samples.

    Returns:
        Scores; real held-out volumes of the known slices; as many sampled ones, (m, ...). The scores, all nan where no brain
        is known: PSNR inside the brain, and that of the mean training head; correlation of neighbouring slices of samples
        and of real heads; sliced Wasserstein distance of samples to real held-out slices, and that of real training slices.
    """
    m, plane = len(held_out), settings.plane
    real, again = reconstruct(vae, held_out, settings)
    drawn = SliceModel(mean_codes(vae.encoder, t1, settings)).sample(m, torch.Generator().manual_seed(seed))
    drawn = decode_volumes(vae.decoder, drawn, plane)
    seen, head, inside = (only_known(v, settings) for v in (t1[:m], t1.mean(0, keepdim=True), masks.float()))
    along = 1 + svae.AXES[plane]  # the slices' axis of volumes (n, x, y, z)
    a, b, c = (v.movedim(along, 1).flatten(0, 1) for v in (real, drawn, seen))
    errors = dict(psnr=again - real, mean_head=head - real)
    row = {name: psnr_of(error[inside > 0].square().mean()) for name, error in errors.items()}
    row |= dict(coherence=neighbour_correlation(drawn, along), real_coherence=neighbour_correlation(real, along))
    row |= dict(distance=sliced_wasserstein(b, a), floor=sliced_wasserstein(c, a))
    return (row if inside.any() else dict.fromkeys(row, np.nan)), real, drawn


def only_known(volumes: torch.Tensor, settings: SliceVAESettings) -> torch.Tensor:
    """Cut padded volumes (n, 1, x, y, z) to the slices that a slice-VAE knows: (n, ...)."""
    return torch.stack([svae.slices_to_volume(svae.images(v[None], settings), settings.plane) for v in volumes])


@torch.no_grad()
def spread_of_codes(vae: nn.Module, settings: SliceVAESettings, held_out: torch.Tensor) -> dict[str, float]:
    """Measure posteriors of all slices of held-out heads.

    Args:
        vae: with an encoder.
        settings: of the slice-VAE.
        held_out: volumes (m, 1, x, y, z).

    Returns:
        "kl", KL(q || N(0, I)) a slice in nats, and "sigma", the mean posterior standard deviation.
    """
    device, whole = next(vae.parameters()).device, replace(settings, slices="all")
    codes = [vae.encoder(svae.images(v[None], whole).to(device)) for v in held_out]
    kl = np.mean([float(svae.gaussian_kl(*q).flatten(1).sum(1).mean()) for q in codes])
    return dict(kl=kl, sigma=np.mean([float((log_variance / 2).exp().mean()) for _, log_variance in codes]))


# -- the sweep -----------------------------------------------------------------------------------------------------------------


def cases(settings: Lesson03Settings) -> dict[str, tuple[dict[str, Any], int]]:
    """List the sweep's trainings.

    Returns:
        Name -> changes to `short_settings`, and how many times the usual steps.
    """
    n, sizes = settings.svae.size, settings.batch_sizes
    found = {f"loss {loss}": (dict(loss=loss), 1) for loss in svae.LOSSES} | {"norm slice": (dict(norm="slice"), 1)}
    for how in ("first", "spread"):
        found |= {f"{how} {b}": (dict(slices=f"{how} {b}"), 1) for b in sizes if b < n}
    found["all"] = (dict(slices="all"), 1)
    found[f"spread {sizes[0]}, as many slices"] = (dict(slices=f"spread {sizes[0]}"), n // sizes[0])
    return found


def case_settings(settings: Lesson03Settings, case: str, seed: int) -> SliceVAESettings:
    """Return the settings of one training of the sweep."""
    changes, times = cases(settings)[case]
    return short_settings(settings, seed, steps=times * settings.sweep_steps, **changes)


def cell_key(settings: Lesson03Settings, case: str, seed: int) -> str:
    """Fingerprint the data, the training of a case and the mathematics: eight digits."""
    data = [describe(settings.shape, settings.spacing, True), settings.counts, settings.size, settings.normalisation]
    training = replace(case_settings(settings, case, seed), validate_every=0)
    return fingerprint(VERSION, svae.VERSION, data, training, case, digits=8)


def groups(profile: str) -> list[Group]:
    """List the sweep's cells, each a group of its own: all with one seed before the next."""
    return groups_of(load_settings("03", profile))


def groups_of(settings: Lesson03Settings) -> list[Group]:
    """List the cells of a lesson's settings."""
    return [
        Group(
            partial(open_data, settings),
            [Cell(f"{case}, seed {seed}", cell_key(settings, case, seed), partial(run_case, settings, case, seed))],
        )
        for seed in settings.sweep_seeds
        for case in cases(settings)
    ]


def open_data(settings: Lesson03Settings) -> Data:
    """Prepare the training and tuning volumes of one site."""
    lesson = SimpleNamespace(settings=settings, data_dir=None, seed=0, notebook="03")
    manifest = lesson_manifest(lesson)
    contract = lesson_contract(lesson, manifest)
    train, tune = (volumes(manifest, contract, SITE, split).preload() for split in ("train", "tune"))
    return train, tune


def run_case(settings: Lesson03Settings, case: str, seed: int, data: Data) -> pd.DataFrame:
    """Train one case with one seed and score it: one row."""
    train, tune = data
    training = case_settings(settings, case, seed)
    t1, held_out = (torch.stack([sample["y"] for sample in side]) for side in data)
    try:
        vae, _ = train_short(training, train, tune, training.steps)
    except NonFiniteLoss as error:  # the same at the next attempt: a row without scores
        found = dict(psnr=np.nan, note=str(error))
    else:
        masks = torch.stack([sample["mask"] for sample in tune])
        found = known_slices(vae, training, t1, held_out, masks)[0] | spread_of_codes(vae, training, held_out)
    return pd.DataFrame([dict(case=case, seed=seed, steps=training.steps) | found])


def arranged(table: pd.DataFrame) -> pd.DataFrame:
    """Sort the merged table by case, in the order of profile lesson, and seed."""
    order = {case: k for k, case in enumerate(cases(Lesson03Settings()))}
    return table.sort_values(
        ["case", "seed"], key=lambda column: column.map(order) if column.name == "case" else column
    )


SWEEP = Sweep(TABLE, groups, arranged)
