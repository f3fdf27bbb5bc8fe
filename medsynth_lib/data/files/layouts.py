"""Published data sets as they are unpacked: from folder and file names to a manifest, without reading a voxel.

A reader lists what it finds or returns None. Cells are paths relative to the folder; "scan.nii.gz#2" is the third volume of
a 4D file, and a folder stands for one DICOM series. Names are those the publishers' pages and well-known loaders show.
"""

import os
import re
from pathlib import Path

import pandas as pd

from medsynth_lib.data.files.manifest import MODALITIES, find_cases, read_manifest
from medsynth_lib.files import DataError

NIFTI = (".nii.gz", ".nii")


def open_dataset(folder):
    """The manifest of a data folder: its manifest.csv, else what `recognise` finds; with a column ``dataset``."""
    path = Path(folder) / "manifest.csv"
    if not path.is_file():
        return recognise(folder)
    frame = read_manifest(path)
    for column in MODALITIES:
        if column not in frame:
            frame[column] = ""
    if "dataset" not in frame:
        frame["dataset"] = "own"
    return frame


def recognise(folder):
    """All scans under a folder, of every published layout that is found there (so two sets may lie side by side).

    Columns: subject, site, split (empty), dataset, one path a modality ("" where missing), and what the set's table knows.
    Raises DataError where no layout fits.
    """
    folder = Path(folder)
    found = [frame for reader in LAYOUTS.values() if (frame := reader(folder)) is not None]
    if not found:
        raise DataError(
            f"{folder}: no manifest.csv, and no files named as in {', '.join(LAYOUTS)}; check DATA_DIR, see the names with "
            "python -m data_download describe NAME, or write a manifest.csv (data_download/README.md)."
        )
    frame = pd.concat(found, ignore_index=True)
    for column in frame.select_dtypes(["object", "string"]):
        frame[column] = frame[column].fillna("")
    frame.attrs["root"] = folder
    return frame


def find(name, folder):
    """The scans of one data set in a folder; raises KeyError for an unknown name and DataError where there are none."""
    if name == "own":
        return open_dataset(folder)
    frame = LAYOUTS[name](Path(folder))
    if frame is None:
        raise DataError(f"{folder}: no scans named as in {name}; compare with python -m data_download describe {name}.")
    frame.attrs["root"] = Path(folder)
    return frame


def files(folder, endings=NIFTI):
    """Files at any depth with one of the endings, sorted; without macOS's "._" twins, and never through a link to a folder."""
    listed = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))  # ".": an unfinished write
        listed += [Path(root, n) for n in sorted(names) if n.endswith(endings) and not n.startswith(".")]
    return listed


def stem(path):
    return path.name.removesuffix(".gz").removesuffix(".nii")


def table(folder, dataset, scans):
    """DataFrame of scans {(subject, site): {modality: path or text, ...}}, or None where there are none."""
    rows = []
    for (subject, site), cells in sorted(scans.items()):
        row = dict(subject=subject, site=site, split="", dataset=dataset) | dict.fromkeys(MODALITIES, "")
        rows.append(row | {k: v.relative_to(folder).as_posix() if isinstance(v, Path) else v for k, v in cells.items()})
    return pd.DataFrame(rows) if rows else None


def matched(folder, pattern, endings=NIFTI):
    """(match, path) of all files whose name without ending fits a regular expression."""
    return [(m, path) for path in files(folder, endings) if (m := re.fullmatch(pattern, stem(path)))]


def brats(folder, year):
    """BraTS 2019 and 2020: see `manifest.find_cases`."""
    if not any(path.is_dir() for path in folder.rglob(f"BraTS{year}_*")):
        return None
    frame = find_cases(folder)
    frame = frame[[Path(next(c for c in row if c)).parent.name.startswith(f"BraTS{year}_") for row in
                   frame[[m for m in MODALITIES if m in frame]].itertuples(index=False)]]  # fmt: skip
    return frame.assign(dataset=f"brats20{year}", **{m: "" for m in MODALITIES if m not in frame}).reset_index(
        drop=True
    )


def msd_task01(folder):
    """Medical Segmentation Decathlon, Task01_BrainTumour: imagesTr/BRATS_001.nii.gz holds FLAIR, T1, T1 with agent, T2 (4D).

    The labels are not yet BraTS's, and no site is known: `ready.ready_dataset` mends both. Test images have no labels.
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


def ixi(folder):
    """IXI: IXI012-HH-1211-T1.nii.gz, site HH, Guys or IOP; T1, T2 and PD in any folders. Heads with skull, not registered."""
    scans = {}
    for match, path in matched(folder, r"(IXI\d+)-(HH|Guys|IOP)-\d+-(T1|T2|PD)"):
        scans.setdefault((match[1], match[2]), {})[match[3].lower()] = path
    return table(folder, "ixi", scans)


def upenn_gbm(folder):
    """UPENN-GBM: UPENN-GBM-00001_11_{FLAIR,T1,T1GD,T2}.nii.gz; _11 is before surgery and _21 after it, which is left out.

    Labels by hand (..._segm) win over automatic ones (..._automated_approx_segm).
    """
    names = {"FLAIR": "flair", "T1": "t1", "T1GD": "t1ce", "T2": "t2", "automated_approx_segm": "seg", "segm": "seg"}
    scans = {}
    for kind, modality in names.items():  # "segm" last: it replaces the automatic labels
        for match, path in matched(folder, rf"(UPENN-GBM-\d+)_11_{kind}"):
            scans.setdefault((match[1], "UPENN"), {})[modality] = path
    return table(folder, "upenn_gbm", scans)


def ucsf_pdgm(folder):
    """UCSF-PDGM: UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_{FLAIR,T1,T1c,T2,tumor_segmentation}.nii.gz; follow-ups are left out."""
    names = {"FLAIR": "flair", "T1": "t1", "T1c": "t1ce", "T2": "t2", "tumor_segmentation": "seg"}
    scans = {}
    for match, path in matched(folder, rf"(UCSF-PDGM-\d+)_({'|'.join(names)})"):
        scans.setdefault((match[1], "UCSF"), {})[names[match[2]]] = path
    return table(folder, "ucsf_pdgm", scans)


def gsp(folder):
    """Brain Genomics Superstruct: Sub0001_Ses1_Scan_01_ANAT1.nii.gz, one T1 a person with the skull; repeat visits left out."""
    found = matched(folder, r"(Sub\d+)_Ses1_Scan_\d+_ANAT1")
    return table(folder, "gsp", {(match[1], "GSP"): {"t1": path} for match, path in found})


def copdgene(folder):
    """COPDGene as this course expects it: <sid>/<sid>_INSP_STD_<centre>_COPD.nii.gz in HU, and a table with a column sid.

    The table (any CSV or tab-separated .txt in the folder) may have FEV1pp_utah and FEV1_FVC_utah: fev1pp and fev1_fvc here.
    """
    found = matched(folder, r"(\w+?)_INSP_STD_(\w+?)_COPD")
    scans = {(match[1], match[2]): {"ct": path} for match, path in found}
    known = {}
    for path in files(folder, (".csv", ".txt")) if scans else []:
        with path.open(encoding="utf-8", errors="replace") as lines:
            separator = "\t" if "\t" in (first := lines.readline()) else ","
        if "sid" in first.strip().split(separator):
            known = phenotypes(path, separator)
    return table(folder, "copdgene", {k: v | known.get(k[0], {}) for k, v in scans.items()})


def phenotypes(path, separator):
    """COPDGene's table: {sid: {fev1pp, fev1_fvc}}, as far as it has them."""
    try:
        frame = pd.read_csv(path, sep=separator, dtype={"sid": str}, encoding_errors="replace", index_col=False)
    except pd.errors.ParserError as error:
        raise DataError(f"{path}: not a readable table ({error}); export it as CSV or tab-separated text.") from error
    frame = frame.drop_duplicates("sid").rename(columns={"FEV1pp_utah": "fev1pp", "FEV1_FVC_utah": "fev1_fvc"})
    return frame.set_index("sid")[[c for c in ("fev1pp", "fev1_fvc") if c in frame]].to_dict("index")


def lidc(folder):
    """LIDC-IDRI as idc-index lays it out: LIDC-IDRI-0001/<study>/CT_<series>/*.dcm; of several CT series the largest."""
    series = {}
    for path in files(folder, (".dcm",)):
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
