"""Manifests: one CSV a data set, one row a scan of one subject at one site; and the splits made from them.

Columns: subject, site, split, one path per modality (relative to the CSV's folder, empty where missing), then one
column per known quantity. A simulated subject may be scanned at several sites, in several rows.
"""

import os
import re
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from medsynth_lib.files import DataError, atomic

MODALITIES = ("flair", "t1", "t1ce", "t2", "pd", "ct", "seg")
TEXT = ("subject", "site", "split", "dataset", *MODALITIES, "grade")
SPLITS = ("train", "tune", "test", "adapt")
UNSAFE = re.compile(r"[/\\\x00-\x1f]|\.\.")
CASE_FOLDER = re.compile(r"BraTS\d\d_(?P<site>[^_]+)_(?P<id>.+?)(_1)?", re.IGNORECASE)


def read_manifest(path):
    """Read a manifest CSV; text columns (subject, site, split, paths, grade) as str with "" where empty.

    Returns a DataFrame whose `attrs["root"]` is the CSV's folder, to which its paths are relative. Known columns may be
    written in any case ("FLAIR"); a column of images under another name is not used, and that is said.

    Raises DataError for a missing file, missing columns, a repeated scan, a subject or site that is empty or a path, and a
    split that is not one of SPLITS, or filled in some rows only.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such manifest; write one with write_manifest(find_cases(folder), ...).")
    _require_commas(path)
    try:
        frame = pd.read_csv(path)
        # Read again as text, or subject "007" would lose its zeros and a site called "NA" become a missing value.
        text = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not a readable CSV ({str(error).strip()}); save it as comma-separated UTF-8."
        ) from error
    if not isinstance(text.index, pd.RangeIndex):
        raise DataError(
            f"{path}: rows have more cells than the first line has names; put commas inside cells in quotes."
        )
    frame.columns = text.columns = _known_names(text.columns, path)
    for column in text.columns.intersection(TEXT):
        frame[column] = text[column].str.strip()
    _require_identity(frame, path)
    if "split" not in frame:
        frame.insert(2, "split", "")
    _require_splits(frame, path)
    frame.attrs["root"] = path.parent
    _require_unique_scans(frame)
    _name_unknown_images(text, path)
    return frame


def _require_commas(path):
    with path.open(encoding="utf-8", errors="replace") as lines:
        header = lines.readline().strip()
    if ";" in header and "," not in header:  # what spreadsheets write where the comma is in decimals
        raise DataError(f"{path}: the first line is {header!r}; separate columns by commas, not semicolons.")


def _known_names(columns, path):
    """Column names, with those in TEXT as they are spelled there: " FLAIR" becomes "flair"."""
    names = [n if (n := c.strip().lower()) in TEXT else c for c in columns]
    twice = [c for c, n in zip(columns, names, strict=True) if names.count(n) > 1]
    if twice:
        raise DataError(f"{path}: columns {twice} are one, for case does not count; keep one of them.")
    return names


def _name_unknown_images(text, path):
    """Say which columns hold paths of NIfTI files, but are none of MODALITIES."""
    for column in text.columns.difference(TEXT):
        if text[column].str.contains(r"\.nii(?:\.gz)?(?:#\d+)?\s*$").any():
            close = get_close_matches(column.lower(), MODALITIES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(MODALITIES)}."
            print(f"{path}: column '{column}' holds NIfTI files, but is no known modality, so it is not used; {hint}")


def _require_splits(frame, path):
    allowed = f"use {', '.join(SPLITS)} in every row, or leave the column empty in all: the lessons then draw a split."
    filled = frame["split"] != ""
    unknown = frame.loc[filled & ~frame["split"].isin(SPLITS), "split"]
    if len(unknown):
        raise DataError(f"{path}: line {unknown.index[0] + 2} has the split '{unknown.iloc[0]}'; {allowed}")
    if filled.any() and not filled.all():
        line = np.flatnonzero(~filled)[0] + 2
        raise DataError(f"{path}: line {line} and {(~filled).sum() - 1} more have no split, others have; {allowed}")


def _require_identity(frame, path):
    for column in ("subject", "site"):
        if column not in frame:
            raise DataError(f"{path}: no column '{column}' among {list(frame.columns)}; add it.")
        empty = np.flatnonzero(frame[column].astype(str) == "")
        if empty.size:
            raise DataError(f"{path}: line {empty[0] + 2} has an empty '{column}'; fill it in.")
        for name in frame[column].astype(str):
            if UNSAFE.search(name):  # outputs are named after subject and site
                raise DataError(f"{path}: {column} {name!r} holds '/', '\\', '..' or a control character; rename it.")


def write_manifest(frame, path):
    """Write a manifest CSV atomically, with its paths made relative to the CSV's folder.

    Raises DataError for missing columns, repeated scans, subjects in two splits, or an unwritable file.
    """
    path = Path(path)
    _require_identity(frame, path)
    check_leaks(frame)
    columns = [c for c in TEXT if c in frame] + [c for c in frame if c not in TEXT]
    frame = frame[columns].copy()
    root = Path(frame.attrs.get("root", path.parent)).resolve()
    for column in frame.columns.intersection(MODALITIES):
        frame[column] = [
            Path(os.path.relpath(root / cell, path.parent.resolve())).as_posix() if cell else ""
            for cell in frame[column]
        ]
    with atomic(path) as temporary:
        frame.to_csv(temporary, index=False)


def find_cases(folder):
    """Find BraTS 2019 and 2020 cases at any depth and list them as a manifest, with grade HGG, LGG or "".

    The site is read from the folder name (`BraTS19_<SITE>_<ID>_1`; TCIA01 to TCIA13 all become TCIA) or, for
    `BraTS20_Training_NNN`, from name_mapping*.csv. The subject is the folder name, but for simulated sites (SIM...)
    the ID alone, for there one subject is scanned at several sites. A missing modality leaves an empty cell.

    Raises DataError where there are no cases, a case has no images, or a case is found twice.
    """
    folder = Path(folder)
    cases = [p for p in sorted(folder.rglob("*")) if p.is_dir() and CASE_FOLDER.fullmatch(p.name)]
    if not cases:
        raise DataError(
            f"{folder}: no folder named like BraTS19_CBICA_AAB_1 or BraTS20_Training_001 at any depth; "
            "check DATA_DIR, or write a manifest.csv."
        )
    mapping = _name_mapping(folder)
    frame = pd.DataFrame([_case_row(case, folder, mapping) for case in cases])
    frame.attrs["root"] = folder
    _require_identity(frame, folder)  # sites of BraTS 2020 come from name_mapping.csv
    _require_unique_scans(frame)
    return frame


def _name_mapping(folder):
    """BraTS 2020 folder name -> (BraTS 2019 name, grade), from every name_mapping*.csv under `folder`."""
    mapping = {}
    for path in sorted(folder.rglob("name_mapping*.csv")):
        try:
            table = pd.read_csv(path, dtype=str, index_col=False).fillna("")
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}: not a readable CSV ({error}); use the file that comes with BraTS 2020."
            ) from error
        if not {"BraTS_2019_subject_ID", "BraTS_2020_subject_ID"} <= set(table.columns):
            raise DataError(
                f"{path}: columns {list(table.columns)} lack BraTS_2019_subject_ID or "
                "BraTS_2020_subject_ID; use the file that comes with BraTS 2020."
            )
        grades = table["Grade"] if "Grade" in table else [""] * len(table)
        names = zip(table["BraTS_2019_subject_ID"], grades, strict=True)
        mapping |= dict(zip(table["BraTS_2020_subject_ID"], names, strict=True))
    return mapping


def _case_row(case, root, mapping):
    earlier_name, grade = mapping.get(case.name, (case.name, ""))
    match = CASE_FOLDER.fullmatch(earlier_name)
    site = re.sub(r"^TCIA\d+$", "TCIA", match["site"]) if match else "unknown"
    site = "unknown" if site in ("Training", "Validation") else site  # BraTS 2020 without a name mapping
    row = {"subject": match["id"] if site.startswith("SIM") else case.name, "site": site, "split": ""}
    for modality in MODALITIES:
        names = [case / f"{case.name}_{modality}{ending}" for ending in (".nii.gz", ".nii")]
        row[modality] = next((p.relative_to(root).as_posix() for p in names if p.is_file()), "")
    if not any(row[modality] for modality in MODALITIES):
        raise DataError(
            f"{case}: none of {case.name}_{{{','.join(MODALITIES)}}}.nii[.gz] is there; "
            "unpack the case again or remove the folder."
        )
    return row | {"grade": case.parent.name if case.parent.name in ("HGG", "LGG") else grade}


def check_leaks(frame):
    """Raise DataError where a subject is in more than one split, at any sites, or a (subject, site) row repeats."""
    _require_unique_scans(frame)
    if "split" in frame:
        count = frame.groupby("subject")["split"].nunique()
        leaked = count.index[count > 1].tolist()
        if leaked:
            raise DataError(
                f"{_root(frame)}: {len(leaked)} subject(s) in more than one split ({_some(leaked)}); "
                "give all scans of a subject one split."
            )


def _require_unique_scans(frame):
    repeated = frame.loc[frame.duplicated(["subject", "site"]), "subject"].tolist()
    if repeated:
        raise DataError(
            f"{_root(frame)}: {len(repeated)} repeated (subject, site) row(s) ({_some(repeated)}); keep one row a scan."
        )


def _root(frame):
    return frame.attrs.get("root", "manifest")


def _some(names):
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")


def split_source_target(frame, source, target, n_adapt, n_tune=0, seed=0):
    """Split two sites as in Table 1 of the slice-VAE paper: train on all of `source`, adapt to part of `target`.

    `frame` is a manifest with an empty split column: a saved split (simulated data) is to be used, not remade.
    Returns its rows of both sites with split "train" (source), "adapt" (`n_adapt` target subjects, inputs only),
    "tune" (`n_tune`) and "test" (the rest), drawn at random per subject. The paper has n_adapt = 100, n_tune = 0.

    Raises DataError for an unknown site, too few target subjects, a filled split, or a subject at both sites.
    """
    if (frame["split"] != "").any():
        raise DataError(
            f"{_root(frame)}: the split column is already filled ({_some(sorted(set(frame['split'])))}); "
            "use that split, or empty the column first."
        )
    if source == target or not {source, target} <= set(frame["site"]):
        raise DataError(
            f"{_root(frame)}: source '{source}' and target '{target}' must be two of the sites "
            f"{sorted(set(frame['site']))}; correct the names."
        )
    frame = frame[frame["site"].isin([source, target])].copy()
    subjects = sorted(set(frame.loc[frame["site"] == target, "subject"]))
    if n_adapt + n_tune >= len(subjects):
        raise DataError(
            f"{_root(frame)}: n_adapt={n_adapt} and n_tune={n_tune} leave no test subject among the "
            f"{len(subjects)} of {target}; lower them."
        )
    roles = ["adapt"] * n_adapt + ["tune"] * n_tune + ["test"] * (len(subjects) - n_adapt - n_tune)
    role = dict(zip(np.random.default_rng(seed).permutation(subjects), roles, strict=True))
    frame["split"] = np.where(frame["site"] == source, "train", frame["subject"].map(role))
    check_leaks(frame)
    return frame


def five_folds(frame, k=5, seed=0):
    """Add a column `fold` (0 to k-1): the fold in which a subject is tested, with every site spread over all folds.

    Raises DataError for fewer than k subjects at any site, which would leave a fold without that site.
    """
    smallest = frame.groupby("site")["subject"].nunique()
    if smallest.min() < k:
        raise DataError(
            f"{_root(frame)}: site {smallest.idxmin()} has only {smallest.min()} subject(s) for {k} folds; "
            "lower k or leave the site out."
        )
    frame = frame.assign(fold=-1)
    folds = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(folds.split(frame, frame["site"], frame["subject"])):
        frame.iloc[test, frame.columns.get_loc("fold")] = fold
    return frame


def paper_table_1():
    """Table 1 of the slice-VAE paper as printed, subjects per set, with what does not add up in `note`.

    The paper counts 146 CBICA and 239 TCIA subjects. The labelled BraTS 2019 cases are 129 and 167; with the
    validation cases 150 and 243: neither gives the paper's counts.
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
