"""Which scans, sites and inputs a lesson takes: pairs of contrasts at two sites, or single volumes.

`experiments.lesson_data` gives a lesson its scans by these rules, and `data_download.verify` asks them beforehand.
"""

from collections.abc import Iterable

import pandas as pd

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.files.splits import with_split
from medsynth_lib.files import DataError

INPUTS = (("flair", "t2"), ("t2", "pd"))  # of pairs, the paper's first; IXI has no FLAIR


def paired(manifest: Manifest, sites: Iterable[str], seed: int) -> Manifest:
    """Return the scans of two sites with a filled split; all scans must be `complete`."""
    return with_split(manifest.select(site=sites), seed)


def pair_inputs(manifest: Manifest) -> tuple[str, str] | None:
    """Return the two input modalities that most scans have beside T1, or None."""
    count = {inputs: int(has(manifest, (*inputs, "t1")).sum()) for inputs in INPUTS}
    best = max(count, key=lambda inputs: count[inputs])  # the first of equals
    return best if count[best] else None


def has(manifest: Manifest, modalities: Iterable[str]) -> pd.Series:
    """Return which scans have all modalities, as booleans; an absent column counts as empty."""
    return manifest.table.reindex(columns=list(modalities), fill_value="").ne("").all(axis=1)


def complete(manifest: Manifest, modalities: tuple[str, ...]) -> Manifest:
    """Return the scans that have all modalities, and print how many were left out."""
    kept = manifest.where(has(manifest, modalities))
    if len(kept) < len(manifest):
        left_out = f"{len(manifest) - len(kept)} of {len(manifest)}"
        print(f"{left_out} scans lack one of {', '.join(modalities)} and are left out")
    return kept


def only_site(manifest: Manifest) -> str | None:
    """Return the site of all complete pairs where there is but one.

    Returns:
        None for two or more sites, or for one that `harmonise.ready_dataset` will halve.
    """
    pairs = manifest.table[has(manifest, (*pair_inputs(manifest), "t1"))]
    sites = set(pairs["site"])
    return sites.pop() if len(sites) == 1 and not (pairs["dataset"] == "msd_task01").all() else None


def site_pair(manifest: Manifest) -> tuple[str, str]:
    """Return source and target: CBICA and TCIA (the paper's), else those with the most scans.

    Raises:
        DataError: for a single site.
    """
    names = set(manifest.table["site"])
    if {"CBICA", "TCIA"} <= names:
        return "CBICA", "TCIA"
    if len(names) < 2:
        raise DataError(f"{manifest.root}: only site {', '.join(names)}; a domain shift needs two sites.")
    largest = manifest.table["site"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    return tuple(sorted(largest.index[:2]))


def require_each_split(manifest: Manifest) -> None:
    """Raise DataError where a site has no subject to train, tune or test.

    Lesson 02 does all three at both sites.
    """
    for site, splits in manifest.table.groupby("site")["split"]:
        if lacking := [split for split in ("train", "tune", "test") if split not in set(splits)]:
            raise DataError(
                f"{manifest.root}: site {site} has no subject in split {', '.join(lacking)}; add some, "
                "or leave the column empty: the lessons then draw a split."
            )
