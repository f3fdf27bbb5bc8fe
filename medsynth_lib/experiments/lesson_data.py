"""The data of a lesson: the simulated subjects, or the real ones that DATA_DIR names, by the same code from here on.

A lesson asks for one of two roles. ``pairs``: input contrasts and T1 of the same person, at two sites (the slice-VAE paper).
``volumes``: single volumes, chest CT or brain T1 (HA-GAN). data_download/registry.yaml says which data set can play which.
"""

import pandas as pd
import torch

from data_download import registry
from medsynth_lib.data.files.layouts import open_dataset
from medsynth_lib.data.files.selection import complete, has, only_site, pair_inputs, paired, site_pair, with_split
from medsynth_lib.data.preparation.contract import Contract
from medsynth_lib.data.preparation.harmonise import ready_dataset
from medsynth_lib.data.preparation.pairs import PairedVolumes
from medsynth_lib.data.simulation.dataset import SEEDS, describe, describe_ct, simulated_dataset, simulated_thoraxes
from medsynth_lib.files import DataError
from medsynth_lib.processes import headless


def lesson_manifest(lesson, required=True):
    """Manifest of a source and a target site with a filled ``split`` column (train, tune, test, adapt).

    Without DATA_DIR: simulated subjects, ``settings.counts`` of each split at every one of ``settings.sites``, written once
    to the cache. With DATA_DIR: its scans that have both inputs and T1, reduced to `site_pair`; where no split is saved,
    `split_sites` makes one (train, tune and test at both sites; the adaptation split of Table 1 is `split_source_target`).

    Data that cannot be paired raises DataError with the reason; where pairs are not ``required``, the reason is printed and
    the simulated subjects take their place.
    """
    s = lesson.settings
    frame = real_scans(lesson, "pairs", required)
    if frame is None:
        return simulated_dataset(
            s.counts, tuple(s.shape), s.spacing, tuple(s.sites), jobs=torch.get_num_threads(), progress=not headless()
        )
    frame = complete(frame, (*pair_inputs(frame), "t1"))
    return paired(frame, s.real_sites or site_pair(frame), lesson.seed)


def lesson_volumes(lesson, modality, required=True):
    """Manifest of single volumes, ``modality`` "ct" (chests) or "t1" (brains), with a filled ``split`` column.

    Without DATA_DIR: `simulated_volumes`, ``settings.volume_counts`` of each split. DATA_DIR and ``required`` as in
    `lesson_manifest`.
    """
    frame = real_scans(lesson, "volumes", required, modality)
    if frame is not None:
        return with_split(complete(frame, (modality,)), lesson.seed, pooled=True)
    return simulated_volumes(lesson.settings, modality, lesson.settings.volume_counts)


def simulated_volumes(settings, modality, counts):
    """Manifest of simulated chests of ``settings.volume_size`` voxels an axis, or tumour-free brains at site A."""
    options = dict(jobs=torch.get_num_threads(), progress=not headless())
    if modality == "ct":
        return simulated_thoraxes(counts, (settings.volume_size,) * 3, **options)
    return simulated_dataset(counts, tuple(settings.shape), settings.spacing, ("A",), tumour=False, **options)


def simulated_people(settings, modality, n):
    """Who the first n training people of `simulated_volumes` are (subject, site, source), without simulating them."""
    ct = modality == "ct"
    source = describe_ct((settings.volume_size,) * 3) if ct else describe(tuple(settings.shape), settings.spacing, False)
    names = [f"{'SIM' if ct else ''}{seed:05d}" for seed in SEEDS["train"][:n]]
    return pd.DataFrame(dict(subject=names, site="SIMCT" if ct else "SIMA", source=source))


def real_scans(lesson, role, required, modality=None):
    """Scans in DATA_DIR that can play a role, made ready (skull-stripped, on one grid); None to simulate instead.

    ``modality`` is that of single volumes. Raises DataError with each data set's reason where none can and ``required``.
    """
    if lesson.data_dir is None:
        return None
    frame = open_dataset(lesson.data_dir)
    reasons = {name: why_not(frame[frame["dataset"] == name], name, role, modality) for name in set(frame["dataset"])}
    usable = frame[frame["dataset"].map(reasons).isna()]
    if role == "pairs" and len(usable) and (lone := only_site(usable)):
        reasons |= dict.fromkeys(set(usable["dataset"]), f"only site {lone}; a domain shift needs two sites")
    elif len(usable):
        return ready_dataset(usable, jobs=torch.get_num_threads(), progress=not headless())
    reason = "; ".join(f"{name}: {why}" for name, why in sorted(reasons.items()))
    if required:
        raise DataError(
            f"{lesson.data_dir}: cannot be used in lesson {lesson.notebook} ({reason}); unset DATA_DIR to run on simulated "
            "data, or see which data set suits which lesson: python -m data_download matrix."
        )
    print(f"{lesson.data_dir.name} is not used here ({reason}): simulated data takes its place")
    return None


def why_not(frame, name, role, modality):
    """Why a data set cannot play a role; None where it can."""
    refusal = registry.refusal(name, role)
    if refusal:
        return refusal
    if role == "pairs":
        return None if pair_inputs(frame) else "no scan has FLAIR and T2, or T2 and PD, together with T1"
    return None if has(frame, (modality,)).any() else f"has no {modality.upper()} volumes"


def kind_of(frame):
    """ "simulated" or "real": what titles and notes must call this data."""
    root = frame.attrs["root"]
    marked = any(
        (folder / "SIMULATED.txt").exists() for folder in (root, *root.glob("*/"))
    )  # by data_download.lookalike
    return (
        "simulated" if marked or ("source" in frame and frame["source"].str.startswith("simulated").all()) else "real"
    )


def lesson_contract(lesson, frame):
    """The preprocessing contract of a notebook's settings, with the inputs that the data has."""
    s = lesson.settings
    inputs = pair_inputs(frame)
    return Contract(inputs=inputs, spacing=(s.spacing,) * 3, size=tuple(s.size), normalisation=s.normalisation)


def volumes(frame, contract, site, split, limit=None):
    """Prepared volumes of one site and split (at most ``limit`` scans)."""
    return PairedVolumes(frame[(frame["site"] == site) & (frame["split"] == split)].head(limit or len(frame)), contract)
