"""Manifests: one row a scan of one subject at one site, and the folder that the paths in it are relative to.

Columns: subject, site, split, one path a modality ("" where missing), then one column a known quantity. A simulated subject
may be scanned at several sites, in several rows. A simulated scan has the columns `SIMULATED`.
"""

import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from medsynth_lib.data.files.tables import is_missing, listed, read_table, typed
from medsynth_lib.files import DataError, atomic, content_hash

MODALITIES = ("flair", "t1", "t1ce", "t2", "pd", "ct", "seg")
TEXT = ("subject", "site", "split", "dataset", *MODALITIES, "grade", "simulator")
SPLITS = ("train", "tune", "test", "adapt")
SHAPE = ("nx", "ny", "nz")  # voxels of a simulated scan
SIMULATED = ("simulator", *SHAPE, "spacing_mm", "tumour")  # what its images depend on besides subject and site
EMPTIED = ("split", "grade", *MODALITIES)  # columns in which "NA" stands for nothing
UNSAFE = re.compile(r"[/\\\x00-\x1f]|\.\.")


@dataclass(frozen=True)
class Scan:
    """One row of a manifest.

    Attributes:
        cells: column -> value.
        root: the folder that paths are relative to.
    """

    cells: dict[str, Any]
    root: Path

    def __getitem__(self, column: str) -> Any:
        return self.cells[column]

    def get(self, column: str, default: Any = None) -> Any:
        """Return a cell, or `default` where the manifest has no such column."""
        return self.cells.get(column, default)

    def replace(self, **cells: Any) -> "Scan":
        """Return the scan with other cells."""
        return Scan(self.cells | cells, self.root)

    def has(self, modality: str) -> bool:
        """Return whether the scan has a file of a modality."""
        cell = self.cells.get(modality)
        return isinstance(cell, str) and bool(cell.strip())  # an empty CSV cell may arrive as NaN

    def path(self, modality: str) -> Path:
        """Return the path of a modality's file; "scan.nii.gz#2" is the third volume of a 4D file.

        Raises:
            DataError: where the scan has no such file.
        """
        if not self.has(modality):
            raise DataError(
                f"{self.root}: subject {self.get('subject', '?')} (site {self.get('site', '?')}) has no {modality} "
                "file in the manifest; add it, or leave the subject out."
            )
        return self.root / Path(self.cells[modality].strip()).expanduser()

    @property
    def simulated(self) -> bool:
        """Whether the course's simulator made the scan."""
        return self.cells.get("simulated") in (True,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels (x, y, z) of a simulated scan, as its columns say."""
        return tuple(int(self.cells[name]) for name in SHAPE)

    def identity(self, modalities: Iterable[str]) -> list[Any]:
        """Return what tells this scan from another, for `files.fingerprint`.

        Args:
            modalities: the files that matter of a real scan.

        Returns:
            Of a simulated scan subject, site and `SIMULATED`; of a real one the hashes of its files.
        """
        if self.simulated:
            known = {name: self.cells[name] for name in SIMULATED if name in self.cells}
            return [self["subject"], self["site"], known]
        return [content_hash(self.path(modality)) for modality in modalities]


@dataclass(frozen=True, eq=False)
class Manifest:
    """A table of scans and the folder that its paths are relative to.

    Attributes:
        table: one row a scan, numbered from 0.
        root: the folder; errors name it.
    """

    table: pd.DataFrame
    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", self.table.reset_index(drop=True))
        object.__setattr__(self, "root", Path(self.root))

    @classmethod
    def read(cls, path: Path | str) -> "Manifest":
        """Read a manifest: a table as `tables.read_table` accepts it.

        Text columns keep their zeros and are "" where empty. Known columns may be written in any case ("FLAIR"). A cell of a
        file, a split or a grade that says "NA" or the like is empty. A column of images under another name is not used, and
        a printed line says so.

        Args:
            path: the CSV; its folder becomes `root`.

        Raises:
            DataError: for a missing file, missing columns, a repeated scan, a subject or site that is empty or a path,
                and a split that is not one of `SPLITS`, or is filled in some rows only.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such manifest; write one with find_cases(folder).write(path).")
        text = read_table(path)
        if not len(text):
            raise DataError(f"{path}: has a first line with names, but no rows; write one row a scan.")
        text.columns = _known_names(text.columns, path)
        for column in text.columns.intersection(EMPTIED):
            text[column] = text[column].where(~text[column].map(is_missing), "")
        for column in text.columns.intersection(MODALITIES):
            text[column] = [_with_slashes(cell, path.parent) for cell in text[column]]
        table = pd.DataFrame({c: text[c] if c in TEXT else typed(text, c, path) for c in text.columns})
        table.index -= 2  # line 2 is row 0, as in a table that was made here
        require_identity(table, path)
        if "split" not in table:
            table.insert(2, "split", "")
        _require_splits(table, path)
        manifest = cls(table, path.parent)
        require_unique_scans(manifest)
        _name_unknown_images(text, path)
        return manifest

    def write(self, path: Path | str) -> None:
        """Write the table as CSV, atomically, with its paths made relative to the CSV's folder.

        Args:
            path: the CSV.

        Raises:
            DataError: for missing columns, repeated scans, subjects in two splits, or an unwritable file.
        """
        path = Path(path)
        require_identity(self.table, path)
        check_leaks(self)
        columns = [c for c in TEXT if c in self.table] + [c for c in self.table if c not in TEXT]
        table, root, folder = self.table[columns].copy(), self.root.resolve(), path.parent.resolve()
        for column in table.columns.intersection(MODALITIES):
            table[column] = [
                Path(os.path.relpath(root / Path(cell).expanduser(), folder)).as_posix() if cell else ""
                for cell in table[column]
            ]
        with atomic(path) as temporary:
            table.to_csv(temporary, index=False)

    def __len__(self) -> int:
        return len(self.table)

    def scans(self) -> list[Scan]:
        """Return the rows, in order."""
        return [Scan(cells, self.root) for cells in self.table.to_dict("records")]

    def replace(self, table: pd.DataFrame) -> "Manifest":
        """Return another table with the same root."""
        return Manifest(table, self.root)

    def assign(self, **columns: Any) -> "Manifest":
        """Return the manifest with new or changed columns."""
        return self.replace(self.table.assign(**columns))

    def where(self, rows: pd.Series) -> "Manifest":
        """Return the scans for which a boolean Series, one value a row, is true."""
        return self.replace(self.table[rows])

    def select(self, **wanted: Any) -> "Manifest":
        """Return the scans with the wanted values: `select(site=("A", "B"), split="train")`.

        Args:
            wanted: column -> its value, or a collection of values.
        """
        rows = pd.Series(True, index=self.table.index)
        for column, values in wanted.items():
            rows &= self.table[column].isin([values] if pd.api.types.is_scalar(values) else list(values))
        return self.where(rows)

    def head(self, n: int | None) -> "Manifest":
        """Return the first `n` scans; all of them for None."""
        return self if n is None else self.replace(self.table.head(n))

    @property
    def simulated(self) -> bool:
        """Whether the course's simulator made every scan."""
        return len(self) > 0 and all(scan.simulated for scan in self.scans())


def _with_slashes(cell: str, root: Path) -> str:
    """A path that Windows wrote, with slashes; a name that really has a backslash stays."""
    return cell if "\\" not in cell or (root / cell).exists() else cell.replace("\\", "/")


def _known_names(columns: Iterable[str], path: Path) -> list[str]:
    """Column names, with those in TEXT as they are spelled there: " FLAIR" becomes "flair"."""
    names = [n if (n := c.strip().lower()) in TEXT else c for c in columns]
    twice = [c for c, n in zip(columns, names, strict=True) if names.count(n) > 1]
    if twice:
        raise DataError(f"{path}: columns {twice} are one, for case does not count; keep one of them.")
    return names


def _name_unknown_images(text: pd.DataFrame, path: Path) -> None:
    """Say which columns hold paths of NIfTI files, but are none of MODALITIES."""
    for column in text.columns.difference(TEXT):
        if text[column].str.contains(r"(?i)\.nii(?:\.gz)?(?:#\d+)?\s*$").any():
            close = get_close_matches(column.lower(), MODALITIES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(MODALITIES)}."
            print(f"{path}: column '{column}' holds NIfTI files, but is no known modality, so it is not used; {hint}")


def _require_splits(table: pd.DataFrame, path: Path) -> None:
    allowed = f"use {', '.join(SPLITS)} in every row, or leave the column empty in all: the lessons then draw a split."
    filled = table["split"] != ""
    unknown = table.loc[filled & ~table["split"].isin(SPLITS), "split"]
    if len(unknown):
        raise DataError(f"{path}: line {unknown.index[0] + 2} has the split '{unknown.iloc[0]}'; {allowed}")
    if filled.any() and not filled.all():
        line = table.index[~filled][0] + 2
        raise DataError(f"{path}: line {line} and {(~filled).sum() - 1} more have no split, others have; {allowed}")


def require_identity(table: pd.DataFrame, path: Path) -> None:
    """Raise DataError unless every row has a subject and a site that can name a file.

    The error names `path`.
    """
    for column in ("subject", "site"):
        if column not in table:
            raise DataError(f"{path}: no column '{column}'; its columns are {listed(table)}; add it.")
        empty = table.index[table[column].astype(str) == ""]
        if len(empty):
            raise DataError(f"{path}: line {empty[0] + 2} has an empty '{column}'; fill it in.")
        for name in table[column].astype(str):
            if UNSAFE.search(name):  # outputs are named after subject and site
                raise DataError(f"{path}: {column} {name!r} holds '/', '\\', '..' or a control character; rename it.")


def require_unique_scans(manifest: Manifest) -> None:
    """Raise DataError where a (subject, site) row repeats, or a name has two spellings."""
    table = manifest.table
    require_one_spelling(manifest)
    repeated = table.loc[table.duplicated(["subject", "site"]), "subject"].tolist()
    if repeated:
        raise DataError(
            f"{manifest.root}: {len(repeated)} repeated (subject, site) row(s) ({some(repeated)}); keep one row a scan."
        )


def require_one_spelling(manifest: Manifest) -> None:
    """Raise DataError where two subjects, or two sites, are one name in two spellings.

    Two spellings differ in case, spaces, "_", "-", "." or leading zeros alone.
    """
    for column in ("subject", "site"):
        first: dict[str, str] = {}
        for name in manifest.table[column].astype(str).unique():
            other = first.setdefault(_spelled_alike(name), name)
            if other != name:
                raise DataError(
                    f"{manifest.root}: {column} {other!r} and {column} {name!r} look like one in two spellings; "
                    "spell it alike in every row, or give them names that differ in more."
                )


def _spelled_alike(name: str) -> str:
    """What all spellings of a name share: "P_007 " and "p-7"."""
    whole = re.sub(r"^(\d+)\.0+$", r"\1", unicodedata.normalize("NFKC", name).strip())  # "7.0", once a number
    plain = re.sub(r"[\s_.\-]+", "-", whole).casefold()
    return re.sub(r"(?<!\d)0+(?=\d)", "", plain)


def check_leaks(manifest: Manifest) -> None:
    """Raise DataError where a subject is in two splits, at any sites, or a scan repeats."""
    require_unique_scans(manifest)
    if "split" in manifest.table:
        count = manifest.table.groupby("subject")["split"].nunique()
        leaked = count.index[count > 1].tolist()
        if leaked:
            raise DataError(
                f"{manifest.root}: {len(leaked)} subject(s) in more than one split ({some(leaked)}); "
                "give all scans of a subject one split."
            )


def some(names: list[Any]) -> str:
    """Return the first five names as text."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
