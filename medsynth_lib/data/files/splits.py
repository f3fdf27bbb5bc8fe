"""Splits of a manifest by subject: the paper's Table 1, five folds, and the lessons' train, tune and test."""

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from medsynth_lib.data.files.manifest import Manifest, check_leaks, some
from medsynth_lib.files import DataError

SHARES = dict(test=0.25, tune=0.1)  # of a real site's subjects; the rest trains
FOLDS = 5


def split_source_target(
    manifest: Manifest, source: str, target: str, n_adapt: int, n_tune: int = 0, seed: int = 0
) -> Manifest:
    """Split two sites as in Table 1 of the slice-VAE paper: train on one, adapt to the other.

    Args:
        manifest: scans with an empty split column: a saved split (simulated data) is to be used, not made anew.
        source: the site to train on.
        target: the site to adapt to and to test on.
        n_adapt: target subjects whose inputs are seen in adaptation; the paper has 100.
        n_tune: target subjects held out for choices; the paper has 0.
        seed: of the random draw.

    Returns:
        The scans of both sites with split "train" (source), "adapt", "tune" and "test" (the rest of the target).

    Raises:
        DataError: for an unknown site, too few target subjects, a filled split, or a subject at both sites.
    """
    table = manifest.table
    if (table["split"] != "").any():
        raise DataError(
            f"{manifest.root}: the split column is already filled ({some(sorted(set(table['split'])))}); "
            "use that split, or empty the column first."
        )
    if source == target or not {source, target} <= set(table["site"]):
        raise DataError(
            f"{manifest.root}: source '{source}' and target '{target}' must be two of the sites "
            f"{sorted(set(table['site']))}; correct the names."
        )
    table = manifest.select(site=(source, target)).table
    subjects = sorted(set(table.loc[table["site"] == target, "subject"]))
    if n_adapt + n_tune >= len(subjects):
        raise DataError(
            f"{manifest.root}: n_adapt={n_adapt} and n_tune={n_tune} leave no test subject among the "
            f"{len(subjects)} of {target}; lower them."
        )
    splits = ["adapt"] * n_adapt + ["tune"] * n_tune + ["test"] * (len(subjects) - n_adapt - n_tune)
    drawn = dict(zip(np.random.default_rng(seed).permutation(subjects), splits, strict=True))
    split = manifest.replace(
        table.assign(split=np.where(table["site"] == source, "train", table["subject"].map(drawn)))
    )
    check_leaks(split)
    return split


def five_folds(manifest: Manifest, seed: int = 0) -> Manifest:
    """Add a column `fold` (0 to 4), the fold that tests a subject.

    Every site is spread over all folds.

    Args:
        manifest: scans; the split column does not count.
        seed: of the random draw.

    Raises:
        DataError: for fewer than five subjects at any site, which would leave a fold without that site.
    """
    table = manifest.table
    smallest = table.groupby("site")["subject"].nunique()
    if smallest.min() < FOLDS:
        raise DataError(
            f"{manifest.root}: site {smallest.idxmin()} has only {smallest.min()} subject(s) for {FOLDS} folds; "
            "leave the site out."
        )
    table = table.assign(fold=-1)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(folds.split(table, table["site"], table["subject"])):
        table.iloc[test, table.columns.get_loc("fold")] = fold
    return manifest.replace(table)


def with_split(manifest: Manifest, seed: int, pooled: bool = False) -> Manifest:
    """Return the manifest with its saved split, or with one by `split_sites`; checked for leaks."""
    if (manifest.table["split"] == "").all():
        manifest = split_sites(manifest, seed, pooled)
    check_leaks(manifest)
    return manifest


def split_sites(manifest: Manifest, seed: int, pooled: bool = False) -> Manifest:
    """Draw a split by subject within each site: a quarter test, a tenth tune, the rest train.

    Each split gets at least one.

    Subjects scanned at several sites form a group of their own, so that all their scans get one split.

    Args:
        manifest: scans; a filled split is overwritten.
        seed: of the random draw.
        pooled: take all sites as one group, for lessons that do not compare sites.

    Raises:
        DataError: for a group with fewer than three subjects.
    """
    table = manifest.table.copy()
    where = table.groupby("subject")["site"].agg(lambda sites: "+".join(sorted(set(sites))))
    if pooled:
        where[:] = "+".join(sorted(set(table["site"])))
    drawn = {}
    for number, (sites, members) in enumerate(sorted(where.groupby(where).groups.items())):
        subjects = np.random.default_rng([seed, number]).permutation(sorted(members))
        if len(subjects) < 3:
            raise DataError(
                f"{manifest.root}: site {sites} has {len(subjects)} subject(s), but at least 3 "
                "are needed for train, tune and test; add subjects or leave the site out."
            )
        splits = [split for split, count in drawn_counts(len(subjects)).items() for _ in range(count)]
        drawn |= dict(zip(subjects, splits, strict=True))
    table["split"] = table["subject"].map(drawn)
    return manifest.replace(table)


def drawn_counts(subjects: int) -> dict[str, int]:
    """Count the subjects that `split_sites` gives to each split, of three or more."""
    counts = {split: max(1, round(share * subjects)) for split, share in SHARES.items()}
    return counts | dict(train=subjects - sum(counts.values()))


def paper_table_1() -> pd.DataFrame:
    """Return Table 1 of the slice-VAE paper as printed; `note` says what does not add up.

    The paper counts 146 CBICA and 239 TCIA subjects. The labelled BraTS 2019 cases are 129 and 167; with the validation
    cases 150 and 243. Neither gives the paper's counts.
    """
    fine_tune = "source 0 contradicts section 4.1, which tunes the pre-trained model; Table 2 also has n = 10"
    rows = [
        ("CBICA -> TCIA", "Without DA", 146, "0", 139, ""),
        ("CBICA -> TCIA", "UDA", 146, "100", 139, ""),
        ("CBICA -> TCIA", "Supervised DA", 0, "40-100", 139, fine_tune),
        ("TCIA -> CBICA", "Without DA", 146, "0", 46, "source should be the 239 TCIA subjects"),
        ("TCIA -> CBICA", "UDA", 239, "100", 46, ""),
        ("TCIA -> CBICA", "Supervised DA", 0, "40-100", 46, fine_tune),
    ]
    return pd.DataFrame(rows, columns=["direction", "method", "source", "adapt", "test", "note"])
