"""Published data sets as they are unpacked: from folder and file names to a manifest, without reading a voxel.

A reader lists what it finds or returns None. Cells are paths relative to the folder; "scan.nii.gz#2" is the third volume of
a 4D file, and a folder stands for one DICOM series. Names are those the publishers' pages and well-known loaders show.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from medsynth_lib.data.files.brats import find_cases
from medsynth_lib.data.files.copdgene import spirometry
from medsynth_lib.data.files.manifest import MODALITIES, Manifest, Scan
from medsynth_lib.data.files.paths import NIFTI, NO_IMAGES, ending, find_files, stem
from medsynth_lib.data.files.tables import ENDINGS
from medsynth_lib.files import DataError, say_once

DICOM = (".dcm", ".ima", "")  # endings; "" is what many exports leave
WORKBOOKS = (".xlsx", ".xls", ".ods", ".numbers")
Table: TypeAlias = pd.DataFrame | None  # the rows of one published data set, or None where a folder holds no scan of it
Scans: TypeAlias = dict[tuple[str, str], dict[str, Any]]  # (subject, site) -> modality -> path, or what else is known
Reader: TypeAlias = Callable[[Path, list[Path]], Table]  # of a folder and the files in it


def open_dataset(folder: Path | str) -> Manifest:
    """Return the manifest of a data folder: its manifest.csv, else what `recognise` finds.

    It has a column `dataset`.

    Raises:
        DataError: for a folder that is not there, two manifests, one that is a workbook or wrong, and for no scans.
    """
    path = manifest_in(folder)
    if path is None:
        return recognise(folder)
    manifest = Manifest.read(path)
    absent = {column: "" for column in MODALITIES if column not in manifest.table}
    named = manifest.table["dataset"].replace("", "own") if "dataset" in manifest.table else "own"
    return with_labels_counted(manifest.assign(**absent, dataset=named))


def manifest_in(folder: Path | str) -> Path | None:
    """Return the manifest in a folder, manifest.csv or .tsv in any case; None for none.

    Raises:
        DataError: for a folder that is not there, for two manifests, and for a workbook.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds the scans or their manifest.csv.")
    found = sorted(path for path in Path(folder).iterdir() if path.stem.lower() == "manifest" and path.is_file())
    paths = [path for path in found if path.suffix.lower() in ENDINGS]
    if len(paths) > 1:
        raise DataError(f"{paths[0]} and {paths[1].name}: both are manifests; keep one of them.")
    workbooks = [path for path in found if path.suffix.lower() in WORKBOOKS]
    if workbooks and not paths:
        raise DataError(f"{workbooks[0]}: is a workbook, not a text table; open it and save it as manifest.csv.")
    return paths[0] if paths else None


def recognise(folder: Path | str) -> Manifest:
    """List all scans under a folder, of every published layout found there.

    Two data sets may lie side by side. Scans that are left out, and data sets whose scans lack labels, are named in a line.

    Returns:
        A manifest with the columns subject, site, split (empty), dataset, one path a modality ("" where missing), and what
        the data set's own table knows.

    Raises:
        DataError: where no layout fits, and for two files of one kind of a subject.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check DATA_DIR.")
    files = listed_files(folder)
    found = [table for reader in LAYOUTS.values() if (table := reader(folder, files)) is not None]
    unread = not_read(folder, files)
    if not found:
        raise DataError(
            unread
            or f"{folder}: no manifest.csv, and no files named as in {', '.join(LAYOUTS)}; check DATA_DIR, see the names with "
            "python -m data_download describe NAME, or write a manifest.csv (data_download/README.md)."
        )
    if unread:
        say_once(f"unread {folder}", unread)
    table = pd.concat(found, ignore_index=True)
    for column in table.select_dtypes(["object", "string"]):
        table[column] = table[column].fillna("")
    return with_labels_counted(Manifest(table, folder))


def find(name: str, folder: Path | str) -> Manifest:
    """List the scans of one published data set in a folder; "own" stands for `open_dataset`.

    Raises:
        KeyError: for an unknown name.
        DataError: where there are no such scans, and for two files of one kind of a subject.
    """
    if name == "own":
        return open_dataset(folder)
    folder = Path(folder)
    files = listed_files(folder)
    table = LAYOUTS[name](folder, files)
    if table is None:
        raise DataError(
            not_read(folder, files)
            or f"{folder}: no scans named as in {name}; compare with python -m data_download describe {name}."
        )
    return with_labels_counted(Manifest(table, folder))


def listed_files(folder: Path) -> list[Path]:
    """List all files at any depth that are not hidden."""
    return find_files(folder, ("",))


def not_read(folder: Path, files: list[Path]) -> str | None:
    """Say which scans need a manifest by their names, and what it must hold; None for none."""
    for pattern, reason in NEED_A_MANIFEST.items():
        paths = [path for path in files if path.name.lower().endswith(NIFTI) and re.fullmatch(pattern, stem(path))]
        if paths:
            return f"{folder}: {len(paths)} files such as {paths[0].name} {reason} (data_download/README.md)."
    return None


def with_labels_counted(manifest: Manifest) -> Manifest:
    """Return a manifest, after a line for each data set that lacks some labels."""
    for name, part in manifest.table.groupby("dataset", sort=False):
        lacking = part.loc[part["seg"] == "", "subject"]
        if 0 < len(lacking) and (len(lacking) < len(part) or name in LABELLED):
            say_once(
                f"labels {manifest.root} {name}",
                f"{manifest.root}: {len(lacking)} of {len(part)} scans of {name} have no labels (seg), such as "
                f"{lacking.iloc[0]}; they get no scores in the tumour.",
            )
    return manifest


def table(folder: Path, dataset: str, scans: Scans) -> Table:
    """Make the rows of scans {(subject, site): {modality: path or text, ...}}; None for none."""
    rows = []
    for (subject, site), cells in sorted(scans.items()):
        row = dict(subject=subject, site=site, split="", dataset=dataset) | dict.fromkeys(MODALITIES, "")
        rows.append(row | {k: v.relative_to(folder).as_posix() if isinstance(v, Path) else v for k, v in cells.items()})
    return pd.DataFrame(rows) if rows else None


def put(scans: Scans, subject: str, site: str, modality: str, path: Path) -> None:
    """Enter a file into the scans of a reader.

    Raises:
        DataError: with both names, where the subject already has such a file.
    """
    earlier = scans.setdefault((subject, site), {}).setdefault(modality, path)
    if earlier != path:
        raise DataError(f"{earlier} and {path}: both are the {modality} of {subject}; keep one of them in this folder.")


def matched(files: list[Path], pattern: str) -> list[tuple[re.Match, Path]]:
    """List (match, path) of all NIfTI files whose name without ending fits a regular expression."""
    images = [path for path in files if path.name.lower().endswith(NIFTI)]
    return [(m, path) for path in images if (m := re.fullmatch(pattern, stem(path)))]


def brats(folder: Path, files: list[Path], year: int) -> Table:
    """List the cases of BraTS 2019 (`year` 19) or 2020 (20): see `brats.find_cases`."""
    prefix = f"brats{year}_"
    if not any(part.lower().startswith(prefix) for path in files for part in path.parent.relative_to(folder).parts):
        return None
    scans = find_cases(folder)
    of_year = [case_folder(scan).lower().startswith(prefix) for scan in scans.scans()]
    return scans.where(pd.Series(of_year)).table.assign(dataset=f"brats20{year}") if any(of_year) else None


def case_folder(scan: Scan) -> str:
    """Return the name of the folder that a scan's files are in."""
    return next(scan.path(modality) for modality in MODALITIES if scan.has(modality)).parent.name


def msd_task01(folder: Path, files: list[Path]) -> Table:
    """List the Medical Segmentation Decathlon's Task01_BrainTumour.

    imagesTr/BRATS_001.nii.gz holds FLAIR, T1, T1 with agent and T2 (4D). The labels are not yet BraTS's, and no site is
    known: `harmonise.ready_dataset` mends both. Test images have no labels.
    """
    scans: Scans = {}
    for match, path in matched(files, r"BRATS_(\d+)"):
        if path.parent.name in ("imagesTr", "imagesTs"):
            for k, modality in enumerate(("flair", "t1", "t1ce", "t2")):
                put(scans, match[0], "MSD", modality, path.with_name(f"{path.name}#{k}"))
    for match, path in matched(files, r"BRATS_(\d+)"):
        if path.parent.name == "labelsTr" and (match[0], "MSD") in scans:
            put(scans, match[0], "MSD", "seg", path)
    return table(folder, "msd_task01", scans)


def ixi(folder: Path, files: list[Path]) -> Table:
    """List IXI: IXI012-HH-1211-T1.nii.gz, site HH, Guys or IOP; T1, T2 and PD in any folders.

    The heads have their skull, and the contrasts are not registered.
    """
    scans: Scans = {}
    for match, path in matched(files, r"(IXI\d+)-(HH|Guys|IOP)-\d+-(T1|T2|PD)"):
        put(scans, match[1], match[2], match[3].lower(), path)
    return table(folder, "ixi", scans)


def upenn_gbm(folder: Path, files: list[Path]) -> Table:
    """List UPENN-GBM: UPENN-GBM-00001_11_{FLAIR,T1,T1GD,T2}.nii.gz.

    _11 is before surgery; _21, after surgery, is left out. Labels by hand (..._segm) win over automatic ones
    (..._automated_approx_segm).
    """
    names = {"FLAIR": "flair", "T1": "t1", "T1GD": "t1ce", "T2": "t2", "segm": "seg"}
    scans: Scans = {}
    automatic: Scans = {}
    for match, path in matched(files, rf"(UPENN-GBM-\d+)_11_({'|'.join(names)})"):
        put(scans, match[1], "UPENN", names[match[2]], path)
    for match, path in matched(files, r"(UPENN-GBM-\d+)_11_automated_approx_segm"):
        put(automatic, match[1], "UPENN", "seg", path)
    for key, cells in automatic.items():
        scans[key] = cells | scans.get(key, {})
    return table(folder, "upenn_gbm", scans)


def ucsf_pdgm(folder: Path, files: list[Path]) -> Table:
    """List UCSF-PDGM: UCSF-PDGM-0004_{FLAIR,T1,T1c,T2,tumor_segmentation}.nii.gz.

    Follow-ups are left out.
    """
    names = {"FLAIR": "flair", "T1": "t1", "T1c": "t1ce", "T2": "t2", "tumor_segmentation": "seg"}
    scans: Scans = {}
    for match, path in matched(files, rf"(UCSF-PDGM-\d+)_({'|'.join(names)})"):
        put(scans, match[1], "UCSF", names[match[2]], path)
    return table(folder, "ucsf_pdgm", scans)


def gsp(folder: Path, files: list[Path]) -> Table:
    """List Brain Genomics Superstruct: Sub0001_Ses1_Scan_01_ANAT1.nii.gz, one T1 with the skull.

    Repeat visits are left out, and of several scans of one visit the later ones.
    """
    scans: Scans = {}
    runs: dict[str, set[str]] = {}
    found = matched(files, r"(Sub\d+)_Ses1_Scan_(\d+)_ANAT1")
    for match, _ in found:
        runs.setdefault(match[1], set()).add(match[2])
    for match, path in found:
        if match[2] == min(runs[match[1]], key=int):
            put(scans, match[1], "GSP", "t1", path)
    several = [subject for subject, numbers in runs.items() if len(numbers) > 1]
    if several:
        say_once(f"gsp {folder}", f"{folder}: {len(several)} subjects, such as {several[0]}, have several scans of one visit; "
                 "the first of each is taken.")  # fmt: skip
    return table(folder, "gsp", scans)


def copdgene(folder: Path, files: list[Path]) -> Table:
    """List COPDGene as this course expects it: <sid>/<sid>_INSP_STD_<centre>_COPD.nii.gz in HU.

    A table of patients may say FEV1pp and FEV1/FVC: see `copdgene.spirometry`.
    """
    scans: Scans = {}
    for match, path in matched(files, r"(\w+?)_INSP_STD_(\w+?)_COPD"):
        put(scans, match[1], match[2], "ct", path)
    if not scans:
        return None
    known = spirometry(
        folder, [path for path in files if path.name.lower().endswith(ENDINGS)], {sid for sid, _ in scans}
    )
    return table(folder, "copdgene", {key: cells | known.get(key[0], {}) for key, cells in scans.items()})


def lidc(folder: Path, files: list[Path]) -> Table:
    """List LIDC-IDRI: LIDC-IDRI-0001/<study>/<series>/*.dcm.

    This is how idc-index and the client of TCIA lay it out. Of several CT series of a patient the largest is taken. A series
    whose folder is not named CT_... is CT where the header of its first file says so.
    """
    series: dict[str, dict[Path, list[Path]]] = {}
    for path in files:
        person = next((p for p in path.relative_to(folder).parts if re.fullmatch(r"LIDC-IDRI-\d+", p)), None)
        if person and ending(path) in DICOM and path.name.lower() not in NO_IMAGES:
            series.setdefault(person, {}).setdefault(path.parent, []).append(path)
    scans: Scans = {}
    for person, found in series.items():
        chests = [place for place, slices in sorted(found.items()) if is_ct(place, slices[0])]
        if chests:
            put(scans, person, "LIDC", "ct", max(chests, key=lambda place: len(found[place])))
    return table(folder, "lidc", scans)


def is_ct(series: Path, first: Path) -> bool:
    """Return whether a folder holds a CT series, by its name or its first file's header.

    A file that cannot be read counts as CT, so that its reader says what is wrong.
    """
    named = re.match(r"([A-Z]+)_", series.name)
    if named:
        return named[1] == "CT"
    try:
        return dcmread(first, stop_before_pixels=True, specific_tags=["Modality"]).get("Modality", "CT") == "CT"
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, AttributeError):
        return True


LAYOUTS: dict[str, Reader] = {
    "brats2019": partial(brats, year=19),
    "brats2020": partial(brats, year=20),
    "msd_task01": msd_task01,
    "ixi": ixi,
    "upenn_gbm": upenn_gbm,
    "ucsf_pdgm": ucsf_pdgm,
    "gsp": gsp,
    "copdgene": copdgene,
    "lidc": lidc,
}
LABELLED = ("brats2019", "brats2020", "msd_task01", "upenn_gbm", "ucsf_pdgm")

# Names of images -> what a manifest of them must say. Their names do not say the site.
NEED_A_MANIFEST = {
    r"(?i)Brats1[78]_.+_(flair|t1|t1ce|t2|seg)": "are of BraTS 2017 or 2018, whose labels are those used here; write a "
    "manifest.csv: medsynth_lib.data.files.brats.find_cases(folder).write(folder / 'manifest.csv')",
    r"(?i)BraTS2021_\d+_(flair|t1|t1ce|t2|seg)": "are of BraTS 2021, which hides its sites; write a manifest.csv with a site "
    "for each subject (its labels are those used here)",
    r"(?i)BraTS-[A-Z]+-\d+-\d+-(t1n|t1c|t2w|t2f|seg)": "are of BraTS 2023 or later, which hides its sites; write a "
    "manifest.csv with a site for each subject, t1n as t1, t1c as t1ce, t2w as t2 and t2f as flair; "
    "label 3 is 4 here, so change it in each seg",
}
