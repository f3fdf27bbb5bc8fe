"""Tables that others wrote, as text: CSV and its relatives from Excel, R, dbGaP and editors.

A table may be quoted or not, separated by comma, semicolon, tab or bar, with decimal points or commas, in UTF-8, UTF-16 or
Windows' own encoding, with or without a byte order mark.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd

from medsynth_lib.files import DataError, say_once

ENDINGS = (".csv", ".tsv", ".txt")
SEPARATORS = (",", ";", "\t", "|")
MISSING = set("na n/a #n/a nan null none nil - -- . ?".split()) | {"", "not available", "not applicable"}
LOOKED_AT = 50  # rows that tell the separator
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .xls begin so
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))

Rows = Iterable[tuple[int, list[str]]]  # the number of a line, and its cells


def read_table(path: Path | str, only: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table with every cell as text, stripped; a cell that a row lacks is "".

    Lines before the names that begin with "#" are skipped, and so are empty lines. A first line "sep=;" is obeyed.

    Args:
        path: the file.
        only: columns to keep, in any case, of a wide table; () keeps all.

    Returns:
        The table. Its index holds the numbers of the lines in the file, from 1. `attrs["comma"]` says whether a comma is a
        decimal one for sure, `attrs["names"]` holds the names of all columns.

    Raises:
        DataError: for a missing file or a workbook, broken quotes, a name that comes twice, and rows with more cells than names.
    """
    path = Path(path)
    text = _text(path)
    given = re.match(r"\s*\"?sep=(.)\"?[ \t]*\r?\n?", text)
    if given:
        text = "\n" + text[given.end() :]
    separator = given[1] if given else _separator(text, path)
    table = _frame(_rows(text, separator, path), {name.casefold() for name in only}, separator, path)
    table.attrs["comma"] = separator == ";"  # which programs write where the comma is in decimals
    return table


def names_column(path: Path | str, names: Sequence[str]) -> bool:
    """Return whether the first line of a text file has one of several names.

    Comments before it do not count. It tells a table from other texts. Files that are no text have none.
    """
    wanted = {name.casefold() for name in names}
    try:
        lines = io.StringIO(_text(Path(path)), newline=None)
    except DataError:
        return False
    for line in lines:
        cells = {cell.strip(' \t\r\n"#\ufeff').casefold() for cell in re.split(r"[,;\t|]", line)}
        if wanted & cells:
            return True
        if any(cells) and not line.lstrip('\ufeff" ').startswith(("#", "sep=")):
            return False
    return False


def find_column(table: pd.DataFrame, names: Sequence[str], path: Path | str, required: bool = True) -> str | None:
    """Return the column that has one of several names, in any case; None where there is none.

    Args:
        table: of `read_table`.
        names: the first that is there wins.
        path: what errors call the table.
        required: whether an absent column is an error.

    Raises:
        DataError: with the columns that were found, for none, or for two that differ in case alone.
    """
    for name in names:
        found = [column for column in table.columns if column.casefold() == name.casefold()]
        if len(found) > 1:
            raise DataError(f"{path}: columns {found} are one, for case does not count; keep one of them.")
        if found:
            return found[0]
    if required:
        raise DataError(f"{path}: no column {' or '.join(names)}; its columns are {listed(table)}.")
    return None


def listed(table: pd.DataFrame) -> str:
    """Return the names of all columns as text, the first twelve of many."""
    found = table.attrs.get("names", list(table.columns))
    names = ", ".join(map(repr, found[:12]))
    return names + (f", ... ({len(found)} in all)" if len(found) > 12 else "")


def is_missing(cell: str) -> bool:
    """Return whether a cell says that a value is missing: "", "NA", "n/a" and so on."""
    return cell.strip().casefold() in MISSING


def numbers(table: pd.DataFrame, column: str, path: Path | str) -> pd.Series:
    """Return a column as float64, NaN where a value is missing.

    Raises:
        DataError: with line and value, for a cell that is no number, and for "1,234", which may be 1.234 or 1234.
    """
    cells = table[column].map(_plain)
    known = cells[~cells.map(is_missing)]
    commas = known[known.str.contains(",", regex=False)]
    proven = table.attrs.get("comma", False) or commas.str.fullmatch(r"[+-]?\d+,(\d{1,2}|\d{4,})").any()
    for line, cell in known.items():
        point = cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell
        if not NUMBER.fullmatch(point):
            raise DataError(f"{path}: column {column!r}, line {line}: {cell!r} is no number; write it as in 12.5.")
        if point != cell and not proven:
            raise DataError(
                f"{path}: column {column!r}, line {line}: {cell!r} may be {point} or {cell.replace(',', '')}; "
                "write decimals with a point, and thousands without a comma."
            )
        if point == cell and "." in cell and len(commas):
            raise DataError(
                f"{path}: column {column!r} has {commas.iloc[0]!r} and, in line {line}, {cell!r}; "
                "write all decimals with a point, and thousands without one."
            )
    return cells.map(lambda cell: np.nan if is_missing(cell) else float(cell.replace(",", "."))).astype(float)


def typed(table: pd.DataFrame, column: str, path: Path | str) -> pd.Series:
    """Return a column as integers, floats or booleans where its cells are that; else as text.

    Raises:
        DataError: for a column of numbers whose commas can be read in two ways.
    """
    cells = table[column].map(_plain)
    known = cells[~cells.map(is_missing)]
    if not len(known):
        return pd.Series(np.nan, index=cells.index, dtype=float)
    if len(known) == len(cells) and known.isin(("True", "False", "TRUE", "FALSE", "true", "false")).all():
        return known.str.lower() == "true"
    if not known.str.fullmatch(rf"{NUMBER.pattern}|[+-]?\d+,\d+").all():
        return table[column].where(~cells.map(is_missing), "")
    if len(known) == len(cells) and known.str.fullmatch(r"[+-]?\d{1,18}").all():
        return known.astype("int64")
    return numbers(table, column, path)


def _plain(cell: str) -> str:
    """A cell with the minus sign of word processors as "-"."""
    return cell.replace("\u2212", "-").strip()


def _clean(cell: str) -> str:
    """A cell without spaces around it, and without a byte order mark that a concatenation left."""
    return cell.strip().removeprefix("\ufeff").strip()


def _text(path: Path) -> str:
    """The text of a file in whatever encoding."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such table; check the path.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); allow reading it, or copy it again.") from error
    if raw.startswith(WORKBOOKS):
        raise DataError(f"{path}: is a workbook, not a text table; open it and save it as CSV.")
    encoding = next((name for mark, name in MARKS if raw.startswith(mark)), None) or _unmarked(raw, path)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not readable as {encoding} ({error.reason}); save it as CSV in UTF-8.") from error
    if "\0" in text:
        raise DataError(f"{path}: holds binary zeros, so it is not a readable table; save it as CSV in UTF-8.")
    return text


def _unmarked(raw: bytes, path: Path) -> str:
    """The encoding of bytes without a byte order mark."""
    if raw[1:2] == b"\0" and raw[:1] != b"\0":
        return "utf-16-le"
    if raw[:1] == b"\0" and raw[1:2] != b"\0":
        return "utf-16-be"
    try:
        raw.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        say_once(
            f"encoding {path}", f"{path}: is not UTF-8, so it is read as Windows-1252; save it as UTF-8 to be sure."
        )
        return "cp1252"


def _rows(text: str, separator: str, path: Path) -> Rows:
    """Yield the lines from the names on that hold something, with their numbers.

    Of names that begin with "#", as in "#sid", the mark goes.
    """
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=separator, strict=True)
    line, begun, remark = 1, False, None
    try:
        for cells in reader:
            if not begun and cells and (first := _clean(cells[0])).startswith("#"):
                remark = (line, [first.lstrip("# "), *cells[1:]]) if not first.startswith("##") else None
            elif any(map(_clean, cells)):
                if not begun and remark and len(remark[1]) == len(cells) > 1:
                    yield remark
                begun = True
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}: not a readable table: line {line}: {error}; close every quote, and double quotes inside cells."
        ) from error


def _separator(text: str, path: Path) -> str:
    """The separator that splits the names into most cells, of those that fit the first rows.

    It is a comma where none splits.
    """
    ranked = []
    for order, separator in enumerate(SEPARATORS):
        try:
            lengths = [len(cells) for _, cells in islice(_rows(text, separator, path), LOOKED_AT)]
        except DataError:
            continue
        if lengths and lengths[0] > 1:
            ranked.append((len(set(lengths)) == 1, lengths[0], -order))
    return SEPARATORS[-max(ranked)[-1]] if ranked else ","


def _frame(rows: Rows, only: set[str], separator: str, path: Path) -> pd.DataFrame:
    """The table of rows, the first of which holds the names."""
    rows = iter(rows)
    names = [_clean(name) for name in next(rows, (0, []))[1]]
    if not names:
        raise DataError(f"{path}: not a readable table: it is empty; export it again.")
    kept = [k for k, name in enumerate(names) if name and (not only or name.casefold() in only)]
    twice = sorted({names[k] for k in kept if names.count(names[k]) > 1})
    if twice:
        raise DataError(f"{path}: columns {twice} come twice; keep one of each.")
    first = list(islice(rows, LOOKED_AT))
    numbered = separator == "\t" and [_clean(cells[0]) for _, cells in first] == [str(k + 1) for k in range(len(first))]
    shift = int(bool(first) and numbered and all(len(cells) == len(names) + 1 for _, cells in first))  # R's row numbers
    lines, body = [], []
    for line, cells in chain(first, rows):
        if any(map(_clean, cells[len(names) + shift :])):
            raise DataError(
                f"{path}: line {line} has {len(cells)} cells, but there are {len(names)} names: rows have more cells than "
                f"the first line has names; put a {separator!r} inside a cell in quotes."
            )
        lines.append(line)
        body.append([_clean(cells[k + shift]) if k + shift < len(cells) else "" for k in kept])
    table = pd.DataFrame(body, columns=[names[k] for k in kept], index=lines, dtype=str)
    table.attrs["names"] = [name for name in names if name]
    return table
