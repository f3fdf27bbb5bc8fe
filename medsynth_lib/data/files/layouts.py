"""Published data sets as they are unpacked: from folder and file names to a manifest, without reading a voxel.

A reader lists what it finds or returns None. Cells are paths relative to the folder; "scan.nii.gz#2" is the third volume of
a 4D file, and a folder stands for one DICOM series. Names are those the publishers' pages and well-known loaders show.
"""

import re
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from medsynth_lib.data.files.brats import find_cases
from medsynth_lib.data.files.manifest import MODALITIES, Manifest, Scan
from medsynth_lib.data.files.paths import NIFTI, find_files, stem
from medsynth_lib.files import DataError

Table: TypeAlias = pd.DataFrame | None  # the rows of one published data set, or None where a folder holds no scan of it


def open_dataset(folder: Path | str) -> Manifest:
    """Return the manifest of a data folder: its manifest.csv, else what `recognise` finds.

    It has a column `dataset`.
    """
    path = Path(folder) / "manifest.csv"
    if not path.is_file():
        return recognise(folder)
    manifest = Manifest.read(path)
    absent = {column: "" for column in MODALITIES if column not in manifest.table}
    named = {} if "dataset" in manifest.table else {"dataset": "own"}
    return manifest.assign(**absent, **named)


def recognise(folder: Path | str) -> Manifest:
    """List all scans under a folder, of every published layout found there.

    Two data sets may lie side by side.

    Returns:
        A manifest with the columns subject, site, split (empty), dataset, one path a modality ("" where missing), and what
        the data set's own table knows.

    Raises:
        DataError: where no layout fits.
    """
    folder = Path(folder)
    found = [table for reader in LAYOUTS.values() if (table := reader(folder)) is not None]
    if not found:
        raise DataError(
            f"{folder}: no manifest.csv, and no files named as in {', '.join(LAYOUTS)}; check DATA_DIR, see the names with "
            "python -m data_download describe NAME, or write a manifest.csv (data_download/README.md)."
        )
    table = pd.concat(found, ignore_index=True)
    for column in table.select_dtypes(["object", "string"]):
        table[column] = table[column].fillna("")
    return Manifest(table, folder)


def find(name: str, folder: Path | str) -> Manifest:
    """List the scans of one published data set in a folder; "own" stands for `open_dataset`.

    Raises:
        KeyError: for an unknown name.
        DataError: where there are no such scans.
    """
    if name == "own":
        return open_dataset(folder)
    table = LAYOUTS[name](Path(folder))
    if table is None:
        raise DataError(f"{folder}: no scans named as in {name}; compare with python -m data_download describe {name}.")
    return Manifest(table, Path(folder))


def table(folder: Path, dataset: str, scans: dict[tuple[str, str], dict[str, Any]]) -> Table:
    """Make the rows of scans {(subject, site): {modality: path or text, ...}}; None for none."""
    rows = []
    for (subject, site), cells in sorted(scans.items()):
        row = dict(subject=subject, site=site, split="", dataset=dataset) | dict.fromkeys(MODALITIES, "")
        rows.append(row | {k: v.relative_to(folder).as_posix() if isinstance(v, Path) else v for k, v in cells.items()})
    return pd.DataFrame(rows) if rows else None


def matched(folder: Path, pattern: str, endings: tuple[str, ...] = NIFTI) -> list[tuple[re.Match, Path]]:
    """List (match, path) of all files whose name without ending fits a regular expression."""
    return [(m, path) for path in find_files(folder, endings) if (m := re.fullmatch(pattern, stem(path)))]


def brats(folder: Path, year: int) -> Table:
    """List the cases of BraTS 2019 (`year` 19) or 2020 (20): see `brats.find_cases`."""
    if not any(path.is_dir() for path in folder.rglob(f"BraTS{year}_*")):
        return None
    scans = find_cases(folder)
    of_year = [case_folder(scan).startswith(f"BraTS{year}_") for scan in scans.scans()]
    return scans.where(pd.Series(of_year)).table.assign(dataset=f"brats20{year}")


def case_folder(scan: Scan) -> str:
    """Return the name of the folder that a scan's files are in."""
    return next(scan.path(modality) for modality in MODALITIES if scan.has(modality)).parent.name


def msd_task01(folder: Path) -> Table:
    """List the Medical Segmentation Decathlon's Task01_BrainTumour.

    imagesTr/BRATS_001.nii.gz holds FLAIR, T1, T1 with agent and T2 (4D). The labels are not yet BraTS's, and no site is
    known: `harmonise.ready_dataset` mends both. Test images have no labels.
    """
    scans = {}
    for match, path in matched(folder, r"BRATS_(\d+)"):
        if path.parent.name in ("imagesTr", "imagesTs"):
            order = ("flair", "t1", "t1ce", "t2")
            inside = path.relative_to(folder).as_posix()
            cells = {modality: f"{inside}#{k}" for k, modality in enumerate(order)}
            label = path.parent.parent / "labelsTr" / path.name
            scans[f"BRATS_{match[1]}", "MSD"] = cells | ({"seg": label} if label.is_file() else {})
    return table(folder, "msd_task01", scans)


def ixi(folder: Path) -> Table:
    """List IXI: IXI012-HH-1211-T1.nii.gz, site HH, Guys or IOP; T1, T2 and PD in any folders.

    The heads have their skull, and the contrasts are not registered.
    """
    scans = {}
    for match, path in matched(folder, r"(IXI\d+)-(HH|Guys|IOP)-\d+-(T1|T2|PD)"):
        scans.setdefault((match[1], match[2]), {})[match[3].lower()] = path
    return table(folder, "ixi", scans)


def upenn_gbm(folder: Path) -> Table:
    """List UPENN-GBM: UPENN-GBM-00001_11_{FLAIR,T1,T1GD,T2}.nii.gz.

    _11 is before surgery; _21, after surgery, is left out. Labels by hand (..._segm) win over automatic ones
    (..._automated_approx_segm).
    """
    names = {"FLAIR": "flair", "T1": "t1", "T1GD": "t1ce", "T2": "t2", "automated_approx_segm": "seg", "segm": "seg"}
    scans = {}
    for kind, modality in names.items():  # "segm" last: it replaces the automatic labels
        for match, path in matched(folder, rf"(UPENN-GBM-\d+)_11_{kind}"):
            scans.setdefault((match[1], "UPENN"), {})[modality] = path
    return table(folder, "upenn_gbm", scans)


def ucsf_pdgm(folder: Path) -> Table:
    """List UCSF-PDGM: UCSF-PDGM-0004_{FLAIR,T1,T1c,T2,tumor_segmentation}.nii.gz.

    Follow-ups are left out.
    """
    names = {"FLAIR": "flair", "T1": "t1", "T1c": "t1ce", "T2": "t2", "tumor_segmentation": "seg"}
    scans = {}
    for match, path in matched(folder, rf"(UCSF-PDGM-\d+)_({'|'.join(names)})"):
        scans.setdefault((match[1], "UCSF"), {})[names[match[2]]] = path
    return table(folder, "ucsf_pdgm", scans)


def gsp(folder: Path) -> Table:
    """List Brain Genomics Superstruct: Sub0001_Ses1_Scan_01_ANAT1.nii.gz, one T1 with the skull.

    Repeat visits are left out.
    """
    found = matched(folder, r"(Sub\d+)_Ses1_Scan_\d+_ANAT1")
    return table(folder, "gsp", {(match[1], "GSP"): {"t1": path} for match, path in found})


def copdgene(folder: Path) -> Table:
    """List COPDGene as this course expects it: <sid>/<sid>_INSP_STD_<centre>_COPD.nii.gz in HU.

    A table with a column sid (any CSV or tab-separated .txt in the folder) may have FEV1pp_utah and FEV1_FVC_utah, which
    become fev1pp and fev1_fvc.
    """
    found = matched(folder, r"(\w+?)_INSP_STD_(\w+?)_COPD")
    scans = {(match[1], match[2]): {"ct": path} for match, path in found}
    known = {}
    for path in find_files(folder, (".csv", ".txt")) if scans else []:
        with path.open(encoding="utf-8", errors="replace") as lines:
            separator = "\t" if "\t" in (first := lines.readline()) else ","
        if "sid" in first.strip().split(separator):
            known = phenotypes(path, separator)
    return table(folder, "copdgene", {k: v | known.get(k[0], {}) for k, v in scans.items()})


def phenotypes(path: Path, separator: str) -> dict[str, dict[str, float]]:
    """Read COPDGene's table: {sid: {fev1pp, fev1_fvc}}, as far as it has them."""
    try:
        frame = pd.read_csv(path, sep=separator, dtype={"sid": str}, encoding_errors="replace", index_col=False)
    except pd.errors.ParserError as error:
        raise DataError(f"{path}: not a readable table ({error}); export it as CSV or tab-separated text.") from error
    frame = frame.drop_duplicates("sid").rename(columns={"FEV1pp_utah": "fev1pp", "FEV1_FVC_utah": "fev1_fvc"})
    return frame.set_index("sid")[[c for c in ("fev1pp", "fev1_fvc") if c in frame]].to_dict("index")


def lidc(folder: Path) -> Table:
    """List LIDC-IDRI as idc-index lays it out: LIDC-IDRI-0001/<study>/CT_<series>/*.dcm.

    Of several CT series of a patient the largest is taken.
    """
    series = {}
    for path in find_files(folder, (".dcm",)):
        person = next((p for p in path.relative_to(folder).parts if re.fullmatch(r"LIDC-IDRI-\d+", p)), None)
        if person and path.parent.name.startswith("CT"):
            series.setdefault(person, {}).setdefault(path.parent, []).append(path)
    largest = {person: max(sorted(found), key=lambda f: len(found[f])) for person, found in series.items()}
    return table(folder, "lidc", {(person, "LIDC"): {"ct": path} for person, path in largest.items()})


LAYOUTS = {
    "brats2019": lambda folder: brats(folder, 19),
    "brats2020": lambda folder: brats(folder, 20),
    "msd_task01": msd_task01,
    "ixi": ixi,
    "upenn_gbm": upenn_gbm,
    "ucsf_pdgm": ucsf_pdgm,
    "gsp": gsp,
    "copdgene": copdgene,
    "lidc": lidc,
}
