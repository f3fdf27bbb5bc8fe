"""Student copies: the notebooks without solutions and outputs."""

from pathlib import Path

import nbformat

from medsynth_lib.files import atomic
from medsynth_lib.settings import notebooks_folder


def student_copy(notebook_path, out_path):
    """Write a notebook without its cells tagged `solution`, its outputs and its execution counts."""
    notebook = nbformat.read(notebook_path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "solution" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    with atomic(out_path) as temporary:
        nbformat.write(notebook, temporary)


def main(arguments) -> int:
    """Command `student`: copy every notebook; returns the exit status."""
    folder = Path(arguments.notebooks or notebooks_folder())
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    for path in paths:
        student_copy(path, Path(arguments.out) / path.name)
    print(f"student copies: {len(paths)} notebooks in {arguments.out}")
    return 0 if paths else 1
