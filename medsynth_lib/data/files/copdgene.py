"""The table of patients of COPDGene: spirometry by subject."""

from pathlib import Path

import numpy as np

from medsynth_lib.data.files.tables import find_column, is_missing, listed, names_column, numbers, read_table
from medsynth_lib.files import DataError, say_once

SUBJECT = ("sid", "SUBJECT_ID")  # the study's name, and that of dbGaP
VISIT = ("visitnum", "Phase_study")  # of tables with a row a visit
QUANTITIES = {
    "fev1pp": ("FEV1pp_utah", "FEV1pp_utah_P1"),
    "fev1_fvc": ("FEV1_FVC_utah", "FEV1_FVC_utah_P1"),
}  # ours -> theirs, in any case; _P1: of the first visit
WANTED = (*SUBJECT, *VISIT, *QUANTITIES["fev1pp"], *QUANTITIES["fev1_fvc"])

Known = dict[str, dict[str, float]]  # subject -> quantity -> value


def spirometry(folder: Path, paths: list[Path], scanned: set[str]) -> Known:
    """Read the spirometry of scanned subjects from the tables with a column sid.

    FEV1pp is in percent of predicted, FEV1/FVC a ratio. Of a table with a row a visit, the first visit counts. What is not
    found is said in a line.

    Args:
        folder: what lines name.
        paths: text files, some of which may be tables.
        scanned: the subjects.

    Returns:
        {sid: {fev1pp, fev1_fvc}}, with what the tables know.

    Raises:
        DataError: for a table that cannot be read, a value that is no number, and two rows that disagree.
    """
    known: dict[str, dict[str, tuple[float, Path]]] = {}
    tables = [path for path in paths if names_column(path, SUBJECT)]
    for path in tables:
        for sid, quantity, value in rows_of(path):
            earlier, source = known.setdefault(sid, {}).setdefault(quantity, (value, path))
            if earlier != value:
                raise DataError(
                    f"{source} and {path}: subject {sid} has {quantity} {earlier:g} in one row and {value:g} in another; "
                    "keep the one that belongs to the scan."
                )
    found = {
        sid: {quantity: value for quantity, (value, _) in known.get(sid.casefold(), {}).items()} for sid in scanned
    }
    lacking = sorted(sid for sid, values in found.items() if not values)
    if lacking:
        where = " and ".join(path.name for path in tables) or f"a table: none here has a column {SUBJECT[0]}"
        say_once(
            f"spirometry {folder}",
            f"{folder}: {len(lacking)} of {len(scanned)} subjects, such as {lacking[0]}, have no spirometry in {where}.",
        )
    return found


def rows_of(path: Path) -> list[tuple[str, str, float]]:
    """Return (subject in lower case, quantity, value) of a table, without what is missing."""
    table = read_table(path, only=WANTED)
    subject = find_column(table, SUBJECT, path)
    visit = find_column(table, VISIT, path, required=False)
    if visit and table[visit].nunique() > 1:
        first = min(numbers(table, visit, path))
        say_once(f"visits {path}", f"{path}: has several visits ({visit}); visit {first:g} is taken.")
        table = table[numbers(table, visit, path) == first]
    rows = []
    for quantity, names in QUANTITIES.items():
        column = find_column(table, names, path, required=False)
        if column is None:
            say_once(f"{quantity} {path}", f"{path}: has no column {names[0]}; its columns are {listed(table)}.")
            continue
        values = zip(table[subject], numbers(table, column, path), strict=True)
        rows += [(s.casefold(), quantity, float(v)) for s, v in values if not is_missing(s) and not np.isnan(v)]
    return rows
