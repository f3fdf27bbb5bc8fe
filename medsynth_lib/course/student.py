"""Student copies: the notebooks without solutions and outputs."""

from pathlib import Path

import nbformat
from nbformat import NotebookNode

from medsynth_lib.files import DataError, atomic, full_path
from medsynth_lib.settings import notebooks_folder


def read_notebook(path: Path) -> NotebookNode:
    """Read a notebook. Raises DataError where there is none that can be read."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: is no notebook that can be read ({reason}); restore it, or take it away.") from error


def student_copy(notebook: Path, copy: Path) -> None:
    """Write a notebook without cells tagged `solution`, outputs and execution counts."""
    book = read_notebook(notebook)
    book.cells = [cell for cell in book.cells if "solution" not in cell.metadata.get("tags", [])]
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    book.metadata.pop("widgets", None)
    with atomic(copy) as temporary:
        nbformat.write(book, temporary)


def require_apart(out: Path, notebooks: Path) -> None:
    """Raise DataError where what is written would replace the notebooks themselves."""
    if out.is_dir() and out.samefile(notebooks):
        raise DataError(
            f"{out}: holds the notebooks themselves, which would be replaced; choose another folder (--out)."
        )


def student_copies(out: str | Path, notebooks: str | Path | None = None) -> int:
    """Copy all notebooks without solutions and outputs.

    Args:
        out: folder that receives the copies.
        notebooks: folder of NN_*.ipynb; None: the course's.

    Returns: the exit status: 0, or 1 where there is no notebook.
    Raises: DataError for the notebooks' own folder, and one that cannot be written.
    """
    folder, target = full_path(notebooks or notebooks_folder()), full_path(out)
    require_apart(target, folder)
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    for path in paths:
        student_copy(path, target / path.name)
    print(f"student copies: {len(paths)} notebooks in {out}")
    return 0 if paths else 1
