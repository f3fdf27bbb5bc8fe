"""The data of a lesson: the simulated subjects, or the real ones that DATA_DIR names, by the same code from here on."""

import os

import numpy as np

from medsynth_lib.data.manifest import check_leaks, open_dataset
from medsynth_lib.data.preprocess import Contract, PairedVolumes
from medsynth_lib.data.simulate import simulated_dataset
from medsynth_lib.display.headless import headless
from medsynth_lib.files import DataError

SHARES = dict(test=0.25, tune=0.1)  # of a real site's subjects; the rest trains


def lesson_manifest(lesson):
    """Manifest with a filled ``split`` column (train, adapt, tune, test) for a notebook's settings.

    With DATA_DIR: its manifest or BraTS folders, split per subject and site where no split is saved. Without: simulated
    subjects, ``settings.counts`` of each split at every one of ``settings.sites``, written once to the cache.
    """
    s = lesson.settings
    if lesson.data_dir is None:
        return simulated_dataset(
            s.counts, tuple(s.shape), s.spacing, tuple(s.sites), jobs=min(os.cpu_count(), 8), progress=not headless()
        )
    frame = open_dataset(lesson.data_dir)
    if (frame["split"] == "").all():
        frame = split_sites(frame, lesson.seed)
    check_leaks(frame)
    return frame


def split_sites(frame, seed):
    """Fill ``split`` at random, per subject within each site: a quarter test, a tenth tune, the rest train, at least one each.

    Raises DataError for a site with fewer than three subjects.
    """
    frame = frame.copy()
    for number, (site, rows) in enumerate(sorted(frame.groupby("site").groups.items())):
        subjects = np.random.default_rng([seed, number]).permutation(sorted(set(frame.loc[rows, "subject"])))
        n_test, n_tune = (max(1, round(share * len(subjects))) for share in SHARES.values())
        if len(subjects) < n_test + n_tune + 1:
            raise DataError(
                f"{frame.attrs.get('root', 'manifest')}: site {site} has {len(subjects)} subject(s), but at least 3 "
                "are needed for train, tune and test; add subjects or leave the site out."
            )
        role = {s: "test" if i < n_test else "tune" if i < n_test + n_tune else "train" for i, s in enumerate(subjects)}
        frame.loc[rows, "split"] = frame.loc[rows, "subject"].map(role)
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
