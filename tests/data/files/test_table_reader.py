"""Tables that Excel, R, dbGaP and editors wrote are read alike; what can be read in two ways is refused."""

import numpy as np
import pytest

from medsynth_lib.data.files.tables import find_column, is_missing, names_column, numbers, read_table, typed
from medsynth_lib.files import SAID, DataError

PLAIN = "sid,site,FEV1\n10005Q,Zürich,55.2\n007,NA,\n"


def written(tmp_path, content, name="t.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.mark.parametrize(
    "content, encoding",
    [
        (PLAIN, "utf-8"),
        (PLAIN, "utf-8-sig"),
        (PLAIN, "utf-16"),
        (PLAIN, "utf-16-le"),
        (PLAIN, "utf-16-be"),
        (PLAIN, "cp1252"),
        (PLAIN.replace("\n", "\r\n"), "utf-8"),
        (PLAIN.replace("\n", "\r"), "utf-8"),  # old Macs
        (PLAIN.replace(",", ";"), "utf-8"),
        (PLAIN.replace(",", "\t"), "utf-16"),  # Excel's "Unicode text"
        (PLAIN.replace(",", "|"), "utf-8"),
        (PLAIN.replace(",", " , "), "utf-8"),
        ("sep=;\n" + PLAIN.replace(",", ";"), "utf-8-sig"),
        ('"sid","site","FEV1"\n"10005Q","Zürich",55.2\n"007","NA",""\n', "utf-8"),  # R
        (
            '"","sid","site","FEV1"\n"1","10005Q","Zürich",55.2\n"2","007","NA",\n',
            "utf-8",
        ),  # R's row names; pandas' index
        ('"sid"\t"site"\t"FEV1"\n"1"\t"10005Q"\t"Zürich"\t55.2\n"2"\t"007"\t"NA"\t\n', "utf-8"),  # write.table
        ("\n\n" + PLAIN + ",,\n\n", "utf-8"),
        ("# Study accession: phs000179\n#\n##\tphv1\tphv2\n" + PLAIN.replace(",", "\t"), "utf-8"),  # dbGaP
        ("#" + PLAIN, "utf-8"),
        ("# made by hand\n#" + PLAIN, "utf-8"),
        ("sid,site,FEV1,,\n10005Q,Zürich,55.2,,\n007,NA\n", "utf-8"),  # Excel's empty columns, and a short row
    ],
)
def test_one_table_in_many_dialects(tmp_path, content, encoding):
    path = written(tmp_path, content, encoding=encoding)
    table = read_table(path)
    assert list(table.columns) == ["sid", "site", "FEV1"]
    assert table.values.tolist() == [["10005Q", "Zürich", "55.2"], ["007", "NA", ""]]
    assert names_column(path, ["SID"]) and not names_column(path, ["id"])


def test_the_separator_is_the_one_that_fits_the_rows(tmp_path):
    path = written(tmp_path, "id;age, in years, at scan, or so;v\n1;2,5;3\n2;3,5;4\n")
    assert list(read_table(path).columns) == ["id", "age, in years, at scan, or so", "v"]


def test_windows_encoding_is_said_once(tmp_path, capsys):
    SAID.clear()
    path = written(tmp_path, PLAIN, encoding="cp1252")
    read_table(path), read_table(path)
    assert capsys.readouterr().out.count("read as Windows-1252") == 1


def test_index_is_the_line_in_the_file(tmp_path):
    path = written(tmp_path, '# note\n\na,b\n1,"two\nlines"\n\n2,x\n')
    assert read_table(path).index.tolist() == [4, 7] and read_table(path)["b"].tolist() == ["two\nlines", "x"]


def test_only_wanted_columns_of_a_wide_table(tmp_path):
    path = written(tmp_path, "a,B,c,c\n1,2,3,4\n")
    assert read_table(path, only=["b", "absent"]).to_dict("list") == {"B": ["2"]}


@pytest.mark.parametrize(
    "content, words",
    [
        ("", ["empty"]),
        ("\n\n", ["empty"]),
        ("a,b,a\n1,2,3\n", ["columns ['a'] come twice"]),
        ("a,b\n1,2\n1,2,3\n", ["line 3 has 3 cells", "2 names"]),
        ('a,b\n1,"2\n3,4\n', ["line 2", "close every quote"]),
        ('a,b\n1,"2"x\n', ["line 2", "quote"]),
        (b"PK\x03\x04 workbook", ["is a workbook", "save it as CSV"]),
        (b"\xd0\xcf\x11\xe0 old workbook", ["is a workbook"]),
        (b"a,b\n1,\x00\n", ["binary zeros"]),
        ("a\n1".encode("utf-16")[:-1], ["not readable as utf-16"]),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(tmp_path, content, words):
    path = written(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_table(path)
    assert all(word in str(caught.value) for word in [str(path), *words]) and "\n" not in str(caught.value)


def test_missing_folders_and_files(tmp_path):
    with pytest.raises(DataError, match="no such table"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_table(tmp_path)
    assert not names_column(tmp_path / "none.csv", ["a"])


def test_columns_are_found_in_any_case_or_what_is_there_is_said(tmp_path):
    table = read_table(written(tmp_path, "sid,fev1pp_utah,Age,AGE\n1,2,3,4\n"))
    assert find_column(table, ["FEV1pp_utah"], "t") == "fev1pp_utah"
    assert (
        find_column(table, ["absent", "SID"], "t") == "sid" and find_column(table, ["x"], "t", required=False) is None
    )
    with pytest.raises(DataError, match="t: no column x or y; its columns are 'sid', 'fev1pp_utah', 'Age', 'AGE'"):
        find_column(table, ["x", "y"], "t")
    with pytest.raises(DataError, match=r"columns \['Age', 'AGE'\] are one"):
        find_column(table, ["age"], "t")


@pytest.mark.parametrize(
    "separator, cells, expected",
    [
        (",", ["1", "2.5", "1e3", "-4"], [1, 2.5, 1000, -4]),
        (",", ["NA", "n/a", "", "Not Available", ".", "7"], [np.nan] * 5 + [7]),
        (";", ["55,2", "3", "1,234"], [55.2, 3, 1.234]),  # a semicolon proves the decimal comma
        (";", ["1,234"], [1.234]),
        ("\t", ["55,2", "3", "1,234"], [55.2, 3, 1.234]),  # so does another cell of the column
        (",", ['"0,5"', '"12,25"'], [0.5, 12.25]),
        (",", ["\u22123.5"], [-3.5]),
    ],
)
def test_numbers(tmp_path, separator, cells, expected):
    rows = "\n".join(f"{k}{separator}{cell}" for k, cell in enumerate(cells))
    table = read_table(written(tmp_path, f"id{separator}v\n{rows}\n"))
    np.testing.assert_array_equal(numbers(table, "v", "t"), expected)


@pytest.mark.parametrize(
    "separator, cells, words",
    [
        (",", ["5", "high"], ["column 'v', line 3: 'high' is no number"]),
        (",", ["55.2%"], ["'55.2%' is no number"]),
        (",", ['"1,234"'], ["'1,234' may be 1.234 or 1234"]),
        (";", ["55,2", "1.234"], ["'55,2' and, in line 3, '1.234'"]),
        (",", ['"1,234.5"'], ["is no number"]),
        (",", ["inf"], ["is no number"]),
    ],
)
def test_numbers_that_are_none_or_can_be_two(tmp_path, separator, cells, words):
    rows = "\n".join(f"{k}{separator}{cell}" for k, cell in enumerate(cells))
    table = read_table(written(tmp_path, f"id{separator}v\n{rows}\n"))
    with pytest.raises(DataError) as caught:
        numbers(table, "v", "t")
    assert all(word in str(caught.value) for word in ["t: ", *words])


def test_typed_columns(tmp_path):
    table = read_table(written(tmp_path, "i;f;b;t;n;m\n1;1,5;True;x;;NA\n02;2;False;3;NA;4\n"))
    kinds = {column: typed(table, column, "t") for column in table}
    assert kinds["i"].tolist() == [1, 2] and kinds["i"].dtype == "int64"
    assert kinds["f"].tolist() == [1.5, 2.0] and kinds["b"].tolist() == [True, False] and kinds["b"].dtype == bool
    assert kinds["t"].tolist() == ["x", "3"] and kinds["n"].isna().all()
    assert np.isnan(kinds["m"].iloc[0]) and kinds["m"].iloc[1] == 4


def test_floats_are_read_to_the_last_digit(tmp_path):
    values = np.random.default_rng(0).uniform(0, 100, 50)
    table = read_table(written(tmp_path, "v\n" + "\n".join(map(repr, values.tolist())) + "\n"))
    assert typed(table, "v", "t").tolist() == values.tolist()


@pytest.mark.parametrize("cell", ["", " ", "NA", "NaN", "N/A", "null", "None", "-", ".", "?", "Not Applicable"])
def test_marks_of_missing_values(cell):
    assert is_missing(cell) and not is_missing("0") and not is_missing("unknown")
