"""The data of a lesson: the simulated subjects, or the real ones that DATA_DIR names, by the same code from here on."""

import numpy as np
import torch

from medsynth_lib.data.manifest import check_leaks, open_dataset
from medsynth_lib.data.preprocess import Contract, PairedVolumes
from medsynth_lib.data.simulate import simulated_dataset
from medsynth_lib.display.headless import headless
from medsynth_lib.files import DataError

SHARES = dict(test=0.25, tune=0.1)  # of a real site's subjects; the rest trains


def lesson_manifest(lesson):
    """Manifest of a source and a target site with a filled ``split`` column (train, tune, test, adapt).

    Without DATA_DIR: simulated subjects, ``settings.counts`` of each split at every one of ``settings.sites``, written once
    to the cache. With DATA_DIR: its manifest or BraTS folders, reduced to `site_pair`; where no split is saved, `split_sites`
    makes one (train, tune and test at both sites; the adaptation split of Table 1 is `split_source_target`).
    """
    s = lesson.settings
    if lesson.data_dir is None:
        return simulated_dataset(
            s.counts, tuple(s.shape), s.spacing, tuple(s.sites), jobs=torch.get_num_threads(), progress=not headless()
        )
    frame = open_dataset(lesson.data_dir)
    frame = frame[frame["site"].isin(site_pair(frame))].reset_index(drop=True)
    if (frame["split"] == "").all():
        frame = split_sites(frame, lesson.seed)
    check_leaks(frame)
    return frame


def split_sites(frame, seed):
    """Fill ``split`` at random, per subject within each site: a quarter test, a tenth tune, the rest train, at least one each.

    Subjects scanned at several sites form a group of their own, so that all their scans get one split.
    Raises DataError for a group with fewer than three subjects.
    """
    frame = frame.copy()
    where = frame.groupby("subject")["site"].agg(lambda sites: "+".join(sorted(set(sites))))
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


def lesson_contract(lesson):
    """The preprocessing contract of a notebook's settings."""
    s = lesson.settings
    return Contract(spacing=(s.spacing,) * 3, size=tuple(s.size), normalisation=s.normalisation)


def volumes(frame, contract, site, split, limit=None):
    """Prepared volumes of one site and split (at most ``limit`` scans)."""
    return PairedVolumes(frame[(frame["site"] == site) & (frame["split"] == split)].head(limit or len(frame)), contract)
