"""Keep the outputs of a run in the notebooks themselves: what readers on the web see."""

import base64
import io
from pathlib import Path

import nbformat
from PIL import Image

from ..files import atomic
from .profiles import notebooks_folder

LARGE = 60_000  # bytes


def keep_outputs(executed, target):
    """Copy a papermill run's notebook over the course's, as if its cells had been run by hand.

    The injected parameters cell is dropped, cells are numbered from 1, timing metadata removed and pictures reduced to
    256 colours, large ones to 128 or 64. Raises ValueError where a cell failed or the code is not the target's.
    """
    book, original = nbformat.read(executed, as_version=4), nbformat.read(target, as_version=4)
    book.cells = [cell for cell in book.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in book.cells] != [cell.source for cell in original.cells]:
        raise ValueError(f"{executed} was run from another version of {Path(target).name}; run it again.")
    book.metadata = original.metadata
    count = 0
    for cell, before in zip(book.cells, original.cells, strict=True):
        cell.metadata = before.metadata
        if cell.cell_type == "code" and cell.source.strip():
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                _tidy(output, count, executed)
    with atomic(target) as temporary:
        nbformat.write(book, temporary)


def _tidy(output, count, executed):
    if output.output_type == "error":
        raise ValueError(f"{executed}: cell [{count}] failed; keep a run that is whole.")
    if "execution_count" in output:
        output.execution_count = count
    if "image/png" in output.get("data", {}):
        output.data["image/png"] = _fewer_colours(output.data["image/png"])


def _fewer_colours(png: str) -> str:
    """A base64 PNG with a palette, where that is smaller; one step of k-means keeps colour maps from falling into bands."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    for colours in (256, 128, 64):
        buffer = io.BytesIO()
        reduced = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
        reduced.save(buffer, "PNG", optimize=True)
        if len(buffer.getvalue()) < LARGE:
            break
    return min(png, base64.b64encode(buffer.getvalue()).decode(), key=len)


def main(arguments) -> int:
    """Command `keep`: the outputs of every executed notebook of a run."""
    for executed in sorted(Path(arguments.out).glob("[0-9][0-9]_*.ipynb")):
        keep_outputs(executed, notebooks_folder() / executed.name)
        print(f"kept the outputs of {executed.name}")
    return 0
