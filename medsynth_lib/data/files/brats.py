"""Cases of BraTS 2019 and 2020, found by the names of their folders."""

import re
from pathlib import Path

import pandas as pd

from medsynth_lib.data.files.manifest import MODALITIES, Manifest, require_identity, require_unique_scans
from medsynth_lib.files import DataError

CASE_FOLDER = re.compile(r"BraTS\d\d_(?P<site>[^_]+)_(?P<id>.+?)(_1)?", re.IGNORECASE)


def find_cases(folder: Path | str) -> Manifest:
    """Find BraTS 2019 and 2020 cases at any depth and list them, with grade HGG, LGG or "".

    The site is read from the folder name (`BraTS19_<SITE>_<ID>_1`; TCIA01 to TCIA13 all become TCIA) or, for
    `BraTS20_Training_NNN`, from name_mapping*.csv. The subject is the folder name. For simulated sites (SIM...) it is the
    ID alone, for there one subject is scanned at several sites. A missing modality leaves an empty cell.

    Args:
        folder: where to look; the manifest's root.

    Raises:
        DataError: where there are no cases, a case has no images, or a case is found twice.
    """
    folder = Path(folder)
    cases = [p for p in sorted(folder.rglob("*")) if p.is_dir() and CASE_FOLDER.fullmatch(p.name)]
    if not cases:
        raise DataError(
            f"{folder}: no folder named like BraTS19_CBICA_AAB_1 or BraTS20_Training_001 at any depth; "
            "check DATA_DIR, or write a manifest.csv."
        )
    mapping = _name_mapping(folder)
    manifest = Manifest(pd.DataFrame([_case_row(case, folder, mapping) for case in cases]), folder)
    require_identity(manifest.table, folder)  # sites of BraTS 2020 come from name_mapping.csv
    require_unique_scans(manifest)
    return manifest


def _name_mapping(folder: Path) -> dict[str, tuple[str, str]]:
    """BraTS 2020 folder name -> (BraTS 2019 name, grade), from every name_mapping*.csv."""
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


def _case_row(case: Path, root: Path, mapping: dict[str, tuple[str, str]]) -> dict[str, str]:
    """The manifest row of one case folder."""
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
