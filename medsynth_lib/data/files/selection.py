"""Which scans, sites and inputs a lesson takes: pairs of contrasts at two sites, or single volumes.

`experiments.lesson_data` gives a lesson its scans by these rules, and `data_download.verify` asks them beforehand.
"""

from collections.abc import Iterable, Sequence
from itertools import count

import pandas as pd

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.files.published import FEWEST, SITES_OF
from medsynth_lib.data.files.splits import drawn_counts, with_split
from medsynth_lib.files import DataError

INPUTS = (("flair", "t2"), ("t2", "pd"))  # of pairs, the paper's first; IXI has no FLAIR


def paired(manifest: Manifest, sites: Iterable[str], seed: int) -> Manifest:
    """Return the scans of two sites with a filled split; all scans must be `complete`."""
    return with_split(manifest.select(site=sites), seed)


def pair_inputs(manifest: Manifest) -> tuple[str, str] | None:
    """Return the two input modalities that most scans have beside T1, or None."""
    scans = {inputs: int(has(manifest, (*inputs, "t1")).sum()) for inputs in INPUTS}
    best = max(scans, key=lambda inputs: scans[inputs])  # the first of equals
    return best if scans[best] else None


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


def lesson_pairs(manifest: Manifest, lesson: str, sites: Sequence[str] = (), seed: int = 0) -> Manifest:
    """Return the pairs that a lesson takes, with a filled split.

    Args:
        manifest: scans at the sites that the lesson will see.
        lesson: its number, a key of `published.SITES_OF`.
        sites: source and target; () takes those of `site_pair`.
        seed: of the split, where none is saved.

    Raises:
        DataError: for data without pairs, a single or an unknown site, a leak, and fewer subjects than the lesson needs.
    """
    inputs = pair_inputs(manifest)
    if inputs is None:
        raise DataError(f"{manifest.root}: no scan has FLAIR and T2, or T2 and PD, together with T1.")
    pairs = manifest.where(has(manifest, (*inputs, "t1")))
    sites = tuple(sites) or site_pair(pairs)
    require_sites(pairs, sites)
    read = sites[: SITES_OF[lesson]]
    for site in read:
        require_subjects(pairs.select(site=site), lesson, f"site {site}")
    chosen = paired(pairs, sites, seed)
    for site in read:
        require_counts(chosen.select(site=site), lesson, f"site {site}")
    return chosen


def lesson_singles(manifest: Manifest, lesson: str, modality: str, seed: int = 0) -> Manifest:
    """Return the single volumes that a lesson takes, with a filled split.

    Args:
        manifest: scans.
        lesson: its number, a key of `published.FEWEST`.
        modality: "ct" or "t1".
        seed: of the split, where none is saved.

    Raises:
        DataError: for data without such volumes, a leak, and fewer subjects than the lesson needs.
    """
    singles = manifest.where(has(manifest, (modality,)))
    if not len(singles):
        raise DataError(f"{manifest.root}: no scan has {modality.upper()}.")
    require_subjects(singles, lesson, modality.upper())
    chosen = with_split(singles, seed, pooled=True)
    require_counts(chosen, lesson, modality.upper())
    return chosen


def require_sites(manifest: Manifest, sites: Sequence[str]) -> None:
    """Raise DataError unless there are two different sites, both in the manifest."""
    known = sorted(set(manifest.table["site"]))
    if len(set(sites)) != 2 or len(sites) != 2 or not set(sites) <= set(known):
        raise DataError(
            f"{manifest.root}: source and target {', '.join(sites)} are not two of its sites {', '.join(known)}; "
            "correct the setting real_sites."
        )


def fewest_subjects(lesson: str) -> int:
    """Return from how many subjects on a drawn split gives a lesson what it needs."""
    return next(n for n in count(3) if all(drawn_counts(n)[split] >= k for split, k in FEWEST[lesson].items()))


def require_subjects(manifest: Manifest, lesson: str, whose: str) -> None:
    """Raise DataError for too few subjects to draw a lesson's split; a saved split passes."""
    subjects, fewest = manifest.table["subject"].nunique(), fewest_subjects(lesson)
    if (manifest.table["split"] == "").all() and subjects < fewest:
        raise DataError(
            f"{manifest.root}: {whose} has {subjects} subject(s), but lesson {lesson} needs at least {fewest} "
            f"({needs(lesson)}); add subjects."
        )


def require_counts(manifest: Manifest, lesson: str, whose: str) -> None:
    """Raise DataError where a split has fewer subjects than a lesson needs."""
    found = manifest.table.groupby("split")["subject"].nunique()
    lacking = [split for split, k in FEWEST[lesson].items() if found.get(split, 0) < k]
    if lacking:
        there = ", ".join(f"{found.get(split, 0)} subject(s) in split {split}" for split in lacking)
        raise DataError(
            f"{manifest.root}: {whose} has {there}, but lesson {lesson} needs at least {needs(lesson)}; add some, "
            f"or leave the column empty: a split of {fewest_subjects(lesson)} or more subjects is then drawn."
        )


def needs(lesson: str) -> str:
    """Say how many subjects a lesson needs in which split: "1 train, 1 tune, 1 test"."""
    return ", ".join(f"{k} {split}" for split, k in FEWEST[lesson].items())
