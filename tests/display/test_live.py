"""With a live kernel and nobody asking for headless: the static picture and the sliders, and the sliders redraw."""

import nbformat
import pytest
from nbclient import NotebookClient

CODE = """
import numpy as np, ipywidgets
from medsynth_lib.data.simulation.subject import make_subject
from medsynth_lib.display.scanner import explore_scanner
from medsynth_lib.display.volume import show
subject = make_subject(2, (40, 48, 36), 4.0)
show(subject.fractions[0], subject.affine, overlay=subject.seg);
"""
MOVE = """
sliders = [w for w in ipywidgets.Widget.widgets.values() if isinstance(w, ipywidgets.IntSlider)]
before = len(sliders)
sliders[0].value = sliders[0].max // 2
explore_scanner(subject);
print(before, [w.description for w in sliders])
"""


@pytest.mark.slow
def test_live_kernel_gets_sliders_below_the_static_picture(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDSYNTH_HEADLESS", raising=False)
    cells = [nbformat.v4.new_code_cell(text) for text in (CODE, MOVE)]
    book = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell in book.cells:
        kinds = [set(o["data"]) for o in cell.outputs if o.output_type in ("display_data", "execute_result")]
        assert any("image/png" in k for k in kinds), kinds
        assert any("application/vnd.jupyter.widget-view+json" in k for k in kinds), kinds
    assert "x (voxel)" in "".join(o.get("text", "") for o in book.cells[1].outputs)
