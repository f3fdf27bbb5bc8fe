"""Cases of BraTS 2017 to 2020, found by the names of their folders."""

import re
from pathlib import Path

import pandas as pd

from medsynth_lib.data.files.manifest import MODALITIES, Manifest, require_identity, require_unique_scans
from medsynth_lib.data.files.paths import NIFTI, find_files, stem, walk
from medsynth_lib.data.files.tables import find_column, is_missing, listed, read_table
from medsynth_lib.files import DataError, say_once

CASE_FOLDER = re.compile(r"BraTS\d\d_(?P<site>[^_]+)_(?P<id>.+?)(_1)?", re.IGNORECASE)
LABELS = re.compile(r".*seg(m|mentation)?", re.IGNORECASE)  # case 355 of 2020 has W39_1998.09.19_Segm.nii
GRADES = ("HGG", "LGG")
COLUMNS = ("BraTS_2019_subject_ID", "BraTS_2020_subject_ID", "Grade")  # of a name mapping

Names = dict[str, tuple[str, str, Path]]  # name of a case -> its name of 2019, its grade, and the table that says so


def find_cases(folder: Path | str) -> Manifest:
    """Find BraTS 2017 to 2020 cases at any depth and list them, with grade HGG, LGG or "".

    The site is read from the folder name (`BraTS19_<SITE>_<ID>_1`; TCIA01 to TCIA13 all become TCIA) or, for
    `BraTS20_Training_NNN`, from name_mapping*.csv. The subject is the folder name. For simulated sites (SIM...) it is the
    ID alone, for there one subject is scanned at several sites. A missing modality leaves an empty cell. Labels under
    another name are taken where they are the only ones, and a printed line says so.

    Args:
        folder: where to look; the manifest's root.

    Raises:
        DataError: where there are no cases, a case has no images or two files of one kind, a case is found twice, a name
            mapping lacks its columns, or two tables disagree.
    """
    folder = Path(folder)
    cases = _case_folders(folder)
    if not cases:
        raise DataError(
            f"{folder}: no folder named like BraTS19_CBICA_AAB_1 or BraTS20_Training_001 at any depth; "
            "check DATA_DIR, or write a manifest.csv."
        )
    mapping = _name_mapping(folder, any(case.name.lower().startswith("brats20_") for case in cases))
    manifest = Manifest(pd.DataFrame([_case_row(case, cases[case], folder, mapping) for case in cases]), folder)
    require_identity(manifest.table, folder)  # sites of BraTS 2020 come from name_mapping.csv
    require_unique_scans(manifest)
    return manifest


def _case_folders(folder: Path) -> dict[Path, list[Path]]:
    """The folders of cases, and their images.

    A folder that only holds the case's folder once more is none.
    """
    found = {}
    for root, names in walk(folder):
        if CASE_FOLDER.fullmatch(root.name):
            found[root] = [root / name for name in names if name.lower().endswith(NIFTI)]
    inside = {parent for case in found for parent in case.parents}
    return {case: images for case, images in sorted(found.items()) if images or case not in inside}


def _name_mapping(folder: Path, needed: bool) -> Names:
    """What every name_mapping*.csv says.

    Those of 2020 give their cases' names of 2019 and grades, those of 2019 grades.

    Args:
        folder: where to look.
        needed: whether cases of 2020 are there, whose sites no other file knows.
    """
    mapping: Names = {}
    paths = [path for path in find_files(folder, (".csv",)) if path.name.lower().startswith("name_mapping")]
    tables = {path: read_table(path) for path in paths}
    columns = {path: [find_column(tables[path], [name], path, required=False) for name in COLUMNS] for path in paths}
    if needed and paths and not any(earlier and later for earlier, later, _ in columns.values()):
        raise DataError(
            f"{paths[0]}: columns {listed(tables[paths[0]])} lack {COLUMNS[0]} or {COLUMNS[1]}; "
            "use the file that comes with BraTS 2020."
        )
    for path, (earlier, later, grade) in columns.items():
        if earlier is None:
            say_once(f"mapping {path}", f"{path}: has no column {COLUMNS[0]}, so it is not used.")
            continue
        for _, row in tables[path].iterrows():
            name = row[later or earlier]
            known = row[earlier], "" if grade is None or is_missing(row[grade]) else row[grade], path
            if not is_missing(name):
                _agree(name, mapping.setdefault(name.casefold(), known), known)
    return mapping


def _agree(name: str, one: tuple[str, str, Path], other: tuple[str, str, Path]) -> None:
    """Raise DataError where two rows of name mappings say different things of a case."""
    for a, b in zip(one[:2], other[:2], strict=True):
        if a != b:
            raise DataError(
                f"{one[2]} and {other[2]}: case {name} is {a or 'without grade'!r} in one row and "
                f"{b or 'without grade'!r} in another; keep the table that is right."
            )


def _case_row(case: Path, images: list[Path], root: Path, mapping: Names) -> dict[str, str]:
    """The manifest row of one case folder."""
    earlier_name, grade, source = mapping.get(case.name.casefold(), (case.name, "", root))
    match = CASE_FOLDER.fullmatch(earlier_name)
    site = re.sub(r"^TCIA\d+$", "TCIA", match["site"]) if match else "unknown"
    site = "unknown" if site in ("Training", "Validation") else site  # BraTS 2020 without a name mapping
    row = {"subject": match["id"] if site.startswith("SIM") else case.name, "site": site, "split": ""}
    for modality in MODALITIES:
        named = [path for path in images if stem(path).lower() == f"{case.name}_{modality}".lower()]
        row[modality] = _only(named, modality, case, root)
    if not any(row[modality] for modality in MODALITIES):
        raise DataError(
            f"{case}: none of {case.name}_{{{','.join(MODALITIES)}}}.nii[.gz] is there; "
            "unpack the case again or remove the folder."
        )
    if not row["seg"]:
        row["seg"] = _labels_of_another_name(case, images, root)
    parent = case.parent.name if case.parent.name in GRADES else ""
    if parent and grade in GRADES and grade != parent:
        raise DataError(
            f"{case}: lies in {parent}, but {source} calls it {grade}; find out which is right, and mend it."
        )
    return row | {"grade": parent or grade}


def _labels_of_another_name(case: Path, images: list[Path], root: Path) -> str:
    named = [path for path in images if LABELS.fullmatch(stem(path))]
    cell = _only(named, "seg", case, root)
    if cell:
        say_once(f"labels {case}", f"{case}: its labels are taken from {named[0].name}.")
    return cell


def _only(paths: list[Path], modality: str, case: Path, root: Path) -> str:
    """The cell of the only path; "" for none."""
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths[:2])
        raise DataError(f"{case}: {names} are both its {modality}; keep one of them.")
    return paths[0].relative_to(root).as_posix() if paths else ""
