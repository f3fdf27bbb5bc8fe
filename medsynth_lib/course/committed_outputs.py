"""Write the outputs of a run into the notebooks themselves: what readers on the web see."""

import base64
import copy
import io
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from PIL import Image

from medsynth_lib.course.student import read_notebook
from medsynth_lib.files import DataError, atomic
from medsynth_lib.settings import notebooks_folder

LARGE = 60_000  # bytes of a picture
LIMIT = 1_450_000  # of a notebook, where the pictures leave a choice


def commit_outputs(executed: Path, target: Path) -> None:
    """Copy a papermill run's notebook over the course's, as if its cells had been run by hand.

    The injected parameters cell is dropped, cells are numbered from 1 and timing metadata removed. Pictures are reduced to 256
    colours, large ones to 128 or 64 where the notebook is too large otherwise.

    Args:
        executed: the notebook that papermill wrote.
        target: the course's notebook, which is replaced.

    Raises: DataError where a notebook cannot be read, a cell failed or the code is not the target's.
    """
    book, original = (read_notebook(path) for path in (executed, target))
    book.cells = [cell for cell in book.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in book.cells] != [cell.source for cell in original.cells]:
        raise DataError(f"{executed} was run from another version of {target.name}; run it again.")
    book.metadata = original.metadata
    for cell, before in zip(book.cells, original.cells, strict=True):
        cell.metadata = before.metadata
    for count, cell in enumerate((c for c in book.cells if c.cell_type == "code" and c.source.strip()), 1):
        cell.execution_count = count
        for output in cell.outputs:
            _tidy(output, count, executed)
    with atomic(target) as temporary:
        temporary.write_text(_small_enough(book), encoding="utf-8")


def _small_enough(book: NotebookNode) -> str:
    """The notebook as text of at most LIMIT bytes, where fewer colours can bring it there."""
    for colours in (256, 128, 64):
        text = nbformat.writes(_fewer_colours(book, colours))
        if len(text.encode()) <= LIMIT:
            break
    return text.rstrip("\n") + "\n"


def _tidy(output: NotebookNode, count: int, executed: Path) -> None:
    """Number an output as its cell; refuse an error."""
    if output.output_type == "error":
        raise DataError(f"{executed}: cell [{count}] failed; commit a run that is whole.")
    if "execution_count" in output:
        output.execution_count = count


def _fewer_colours(book: NotebookNode, colours: int) -> NotebookNode:
    """A copy whose pictures have 256 colours at most, large ones ``colours``."""
    book = copy.deepcopy(book)
    for output in (output for cell in book.cells for output in cell.get("outputs", ())):
        if "image/png" in output.get("data", {}):
            png = _palette(output.data["image/png"], 256)
            output.data["image/png"] = png if len(png) < LARGE else min(png, _palette(png, colours), key=len)
    return book


def _palette(png: str, colours: int) -> str:
    """A base64 PNG with a palette, where that is smaller."""
    # One step of k-means keeps colour maps from falling into bands.
    picture, buffer = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    reduced = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    reduced.save(buffer, "PNG", optimize=True)
    return min(png, base64.b64encode(buffer.getvalue()).decode(), key=len)


def commit_run(out: str | Path) -> int:
    """Write the outputs of a run into the course's notebooks.

    Returns: the exit status: 0, or 2 where there is no executed notebook.
    """
    found = sorted(Path(out).glob("[0-9][0-9]_*.ipynb"))
    if not found:
        print(f"{out} holds no executed notebook; give the folder of a run.", file=sys.stderr)
        return 2
    for executed in found:
        commit_outputs(executed, notebooks_folder() / executed.name)
        print(f"outputs of {executed.name} are in the notebook")
    return 0
