"""What every notebook of the course keeps to, and that its exercises are neither unsolvable nor already solved."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from medsynth_lib.course.student import student_copy

FOLDER = Path(__file__).parents[2] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
PARAMETERS = {"PROFILE": "", "SEED": 0, "DATA_DIR": "", "OUT_DIR": "", "OVERRIDES": {}}
MACHINE_PATH = re.compile(r"(?<![\w.:/])(/(home|Users|root|tmp|work|mnt|scratch)/|[A-Z]:\\Users)")

notebooks = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code(book):
    return [cell for cell in book.cells if cell.cell_type == "code" and cell.source.strip()]


def tags(cell):
    return cell.metadata.get("tags", [])


@notebooks
def test_name_and_head(path):
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    head = read(path).cells[0]
    assert head.cell_type == "markdown" and head.source.startswith(f"# {path.name[:2]}. ")
    for heading in ("You will be able to", "From the paper", "Before you start", "Time and memory"):
        assert heading in head.source, f"{path.name}: the first cell lacks {heading!r}"
    for profile in ("quick", "lesson", "gpu", "paper"):
        assert re.search(rf"^\| *[`*]*{profile}\b", head.source, re.MULTILINE), f"{path.name}: no row {profile}"


@notebooks
def test_parameters_are_the_five_literals(path):
    (cell,) = [cell for cell in read(path).cells if "parameters" in tags(cell)]
    statements = ast.parse(cell.source).body
    assert {each.targets[0].id: ast.literal_eval(each.value) for each in statements} == PARAMETERS
    assert [each.targets[0].id for each in statements] == list(PARAMETERS)


@notebooks
def test_ends_with_recap_and_results(path):
    book = read(path)
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^#+ +(.+)$", re.sub(r"(?ms)^```.*?^```", "", text), re.MULTILINE)
    assert any("Recap" in heading for heading in headings[-2:]), f"{path.name} ends with {headings[-2:]}"
    assert any("lesson.results.table()" in cell.source for cell in code(book))


@notebooks
def test_code_cells_are_short_and_import_nothing_by_pip(path):
    for cell in code(read(path)):
        assert len(cell.source.splitlines()) <= 20, f"{path.name}: a cell of {len(cell.source.splitlines())} lines"
        assert not re.search(r"^\s*[%!]\s*(pip|conda)\b", cell.source, re.MULTILINE), path.name


@notebooks
def test_exercises_have_a_folded_solution_and_a_check(path):
    cells = [cell for cell in read(path).cells if {"exercise", "solution", "check"} & set(tags(cell))]
    runs = [cell for cell in cells if cell.cell_type == "code"]
    order = [next(tag for tag in tags(cell) if tag in ("exercise", "solution", "check")) for cell in runs]
    assert len(order) >= 9 and order == ["exercise", "solution", "check"] * (len(order) // 3), f"{path.name}: {order}"
    for cell in cells:
        if "solution" in tags(cell) and cell.cell_type == "code":
            assert cell.metadata.get("jupyter", {}).get("source_hidden") is True, f"{path.name}: a solution is open"


@notebooks
def test_kept_outputs_are_of_one_clean_run(path):
    book = read(path)
    cells = code(book)
    if any(cell.outputs for cell in cells):
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not [output for output in cell.outputs if output.output_type == "error"], cell.source
        assert "injected-parameters" not in tags(cell), f"{path.name}: an injected cell was committed"


@notebooks
def test_file_is_small_and_portable(path):
    assert path.stat().st_size <= 1.5e6
    nbformat.validate(read(path))
    for cell in read(path).cells:
        texts = [cell.source, *(str(output.get("text", "")) for output in cell.get("outputs", []))]
        texts += [str(output.get("data", {}).get("text/plain", "")) for output in cell.get("outputs", [])]
        for text in texts:
            assert not MACHINE_PATH.search(text), f"{path.name}: a path of one machine in {text[:80]!r}"
        if cell.cell_type == "markdown":  # the report must show every picture without a network
            assert not re.search(r"!\[[^\]]*\]\(http|<img[^>]*src=.http", cell.source), f"{path.name}: a remote picture"


@notebooks
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_exercises_unsolved_fail(path, tmp_path, monkeypatch):
    """Without its solutions each check of a notebook fails, kindly (the solved notebook is run by nbval)."""
    monkeypatch.setenv("MEDSYNTH_PROFILE", "quick")
    monkeypatch.setenv("MEDSYNTH_HEADLESS", "1")
    monkeypatch.setenv("MEDSYNTH_OUT_DIR", str(tmp_path / "out"))
    student_copy(path, tmp_path / path.name)
    book = read(tmp_path / path.name)
    NotebookClient(book, timeout=600, allow_errors=True, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in (cell for cell in book.cells if "check" in tags(cell)):
        errors = [output.ename for output in cell.outputs if output.output_type == "error"]
        assert errors == ["ExerciseNotSolved"], f"{path.name}: {cell.source} ended in {errors or 'success'}"
