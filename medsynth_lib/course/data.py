"""The data of a lesson: the simulated subjects, or the real ones that DATA_DIR names, by the same code from here on.

A lesson asks for one of two roles. ``pairs``: input contrasts and T1 of the same person, at two sites (the slice-VAE paper).
``volumes``: single volumes, chest CT or brain T1 (HA-GAN). data_download/registry.yaml says which data set can play which.
"""

import numpy as np
import torch

from data_download import registry
from medsynth_lib.data.layouts import open_dataset
from medsynth_lib.data.manifest import check_leaks
from medsynth_lib.data.preprocess import Contract, PairedVolumes
from medsynth_lib.data.ready import ready_dataset
from medsynth_lib.data.simulate import simulated_dataset, simulated_thoraxes
from medsynth_lib.display.headless import headless
from medsynth_lib.files import DataError

SHARES = dict(test=0.25, tune=0.1)  # of a real site's subjects; the rest trains
INPUTS = (("flair", "t2"), ("t2", "pd"))  # of pairs, the paper's first; IXI has no FLAIR


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
    frame = frame[frame["site"].isin(s.real_sites or site_pair(frame))].reset_index(drop=True)
    return with_split(frame, lesson.seed)


def lesson_volumes(lesson, modality, required=True):
    """Manifest of single volumes, ``modality`` "ct" (chests) or "t1" (brains), with a filled ``split`` column.

    Without DATA_DIR: simulated chests of ``settings.volume_size`` voxels an axis, or tumour-free brains at site A;
    ``settings.volume_counts`` of each split. DATA_DIR and ``required`` as in `lesson_manifest`.
    """
    s = lesson.settings
    frame = real_scans(lesson, "volumes", required, modality)
    if frame is not None:
        return with_split(complete(frame, (modality,)), lesson.seed, pooled=True)
    options = dict(jobs=torch.get_num_threads(), progress=not headless())
    if modality == "ct":
        return simulated_thoraxes(s.volume_counts, (s.volume_size,) * 3, **options)
    return simulated_dataset(s.volume_counts, tuple(s.shape), s.spacing, ("A",), tumour=False, **options)


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


def only_site(frame):
    """The site of all complete pairs where there is but one; None for two or more, or a site that `ready_dataset` will halve."""
    pairs = frame[has(frame, (*pair_inputs(frame), "t1"))]
    sites = set(pairs["site"])
    return sites.pop() if len(sites) == 1 and not (pairs["dataset"] == "msd_task01").all() else None


def pair_inputs(frame):
    """The two input modalities that most scans have beside T1, or None."""
    count = {inputs: int(has(frame, (*inputs, "t1")).sum()) for inputs in INPUTS}
    best = max(count, key=count.get)  # the first of equals
    return best if count[best] else None


def has(frame, modalities):
    """Which scans have all modalities (boolean Series); a column that is not there counts as empty."""
    return frame.reindex(columns=list(modalities), fill_value="").ne("").all(axis=1)


def complete(frame, modalities):
    """The scans that have all modalities; says how many were left out."""
    kept = frame[has(frame, modalities)].reset_index(drop=True)
    if len(kept) < len(frame):
        print(f"{len(frame) - len(kept)} of {len(frame)} scans lack one of {', '.join(modalities)} and are left out")
    return kept


def with_split(frame, seed, pooled=False):
    """``frame`` with its saved split, or one by `split_sites`; checked for leaks."""
    if (frame["split"] == "").all():
        frame = split_sites(frame, seed, pooled)
    check_leaks(frame)
    return frame


def kind_of(frame):
    """ "simulated" or "real": what titles and notes must call this data."""
    root = frame.attrs["root"]
    marked = any((folder / "SIMULATED.txt").exists() for folder in (root, *root.glob("*/")))  # by data_download.lookalike
    return (
        "simulated" if marked or ("source" in frame and frame["source"].str.startswith("simulated").all()) else "real"
    )


def split_sites(frame, seed, pooled=False):
    """Fill ``split`` at random, per subject within each site: a quarter test, a tenth tune, the rest train, at least one each.

    Subjects scanned at several sites form a group of their own, so that all their scans get one split. ``pooled`` takes all
    sites as one group, for lessons that do not compare sites.
    Raises DataError for a group with fewer than three subjects.
    """
    frame = frame.copy()
    where = frame.groupby("subject")["site"].agg(lambda sites: "+".join(sorted(set(sites))))
    if pooled:
        where[:] = "+".join(sorted(set(frame["site"])))
    role = {}
    for number, (sites, members) in enumerate(sorted(where.groupby(where).groups.items())):
        subjects = np.random.default_rng([seed, number]).permutation(sorted(members))
        n_test, n_tune = (max(1, round(share * len(subjects))) for share in SHARES.values())
        if len(subjects) < n_test + n_tune + 1:
            raise DataError(
                f"{frame.attrs.get('root', 'manifest')}: site {sites} has {len(subjects)} subject(s), but at least 3 "
                "are needed for train, tune and test; add subjects or leave the site out."
            )
        splits = ["test"] * n_test + ["tune"] * n_tune + ["train"] * (len(subjects) - n_test - n_tune)
        role |= dict(zip(subjects, splits, strict=True))
    frame["split"] = frame["subject"].map(role)
    return frame


def site_pair(frame):
    """Source and target site: CBICA and TCIA where both are there (the paper's), else the two with the most scans."""
    names = set(frame["site"])
    if {"CBICA", "TCIA"} <= names:
        return "CBICA", "TCIA"
    if len(names) < 2:
        raise DataError(
            f"{frame.attrs.get('root', 'manifest')}: only site {', '.join(names)}; a domain shift needs two sites."
        )
    largest = frame["site"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return tuple(sorted(largest.index[:2]))


def lesson_contract(lesson, frame):
    """The preprocessing contract of a notebook's settings, with the inputs that the data has."""
    s = lesson.settings
    inputs = pair_inputs(frame)
    return Contract(inputs=inputs, spacing=(s.spacing,) * 3, size=tuple(s.size), normalisation=s.normalisation)


def volumes(frame, contract, site, split, limit=None):
    """Prepared volumes of one site and split (at most ``limit`` scans)."""
    return PairedVolumes(frame[(frame["site"] == site) & (frame["split"] == split)].head(limit or len(frame)), contract)
