"""The two roles that scans can play in a lesson, pairs at two sites or single volumes: which scans, sites and splits.

`course.data` gives a lesson its scans by these rules, and `data_download.verify` asks them beforehand.
"""

import numpy as np

from medsynth_lib.data.files.manifest import check_leaks
from medsynth_lib.files import DataError

SHARES = dict(test=0.25, tune=0.1)  # of a real site's subjects; the rest trains
INPUTS = (("flair", "t2"), ("t2", "pd"))  # of pairs, the paper's first; IXI has no FLAIR


def paired(frame, sites, seed):
    """The scans of a source and a target site, with a filled split; ``frame`` has scans that are complete."""
    return with_split(frame[frame["site"].isin(sites)].reset_index(drop=True), seed)


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


def only_site(frame):
    """The site of all complete pairs where there is but one; None for two or more, or a site that `ready_dataset` will halve."""
    pairs = frame[has(frame, (*pair_inputs(frame), "t1"))]
    sites = set(pairs["site"])
    return sites.pop() if len(sites) == 1 and not (pairs["dataset"] == "msd_task01").all() else None


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


def with_split(frame, seed, pooled=False):
    """``frame`` with its saved split, or one by `split_sites`; checked for leaks."""
    if (frame["split"] == "").all():
        frame = split_sites(frame, seed, pooled)
    check_leaks(frame)
    return frame


def require_each_split(frame):
    """Raise DataError where a site has no subject to train, tune or test: lesson 02 does all three at both sites."""
    for site, splits in frame.groupby("site")["split"]:
        if lacking := [split for split in ("train", "tune", "test") if split not in set(splits)]:
            raise DataError(
                f"{frame.attrs.get('root', 'manifest')}: site {site} has no subject in split {', '.join(lacking)}; add some, "
                "or leave the column empty: the lessons then draw a split."
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
