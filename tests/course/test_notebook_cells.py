"""Every cell of the matrix data set x lesson: a lesson runs, by DATA_DIR alone, or refuses in its first cell, as `verify` said.

The folders look like the real ones, and their images are simulated and coarse. By default a set of pairs and one of volumes is
run; MEDSYNTH_MATRIX=full runs all sets.
"""

import json
import math
import os
import subprocess
import sys
from unittest import mock

import nbformat
import numpy as np
import pytest

from data_download import lookalike, registry
from data_download.verify import verify
from medsynth_lib.data.files.published import refusal

PAIRS = [["brats2019"], ["brats2020"], ["msd_task01"], ["ixi"], ["upenn_gbm", "ucsf_pdgm"]]
VOLUMES = [["gsp"], ["copdgene"], ["lidc"]]
FULL = os.environ.get("MEDSYNTH_MATRIX") == "full"
MATRIX = PAIRS + VOLUMES if FULL else []

pytestmark = pytest.mark.slow  # notebooks are run


def names(sets):
    return "+".join(sets)


def every(array):
    """The steps at which an image is thinned out: chests keep their few slices."""
    return np.array([8, 8, 1] if array.shape[0] == 512 else [2, 2, 2] if array.shape[0] > 60 else [1, 1, 1])


def coarsely(write):
    """A writer of `lookalike` that stores fewer voxels of the same field of view."""

    def thinned(place, array, affine, *rest, **options):
        step = every(array)
        return write(place, array[:: step[0], :: step[1], :: step[2]], affine @ np.diag([*step, 1]), *rest, **options)

    return thinned


BRATS = (60, 60, 39), lookalike.BRATS[1] @ np.diag([4, 4, 4, 1])
SMALL = dict(BRATS=BRATS, save=coarsely(lookalike.save), dicom=coarsely(lookalike.dicom))


def one_more_case(folder):
    """Lesson 03 trains on two volumes of the source site: four subjects."""
    lookalike.brats(folder / "MICCAI_BraTS_2019_Data_Training" / "HGG", {"BraTS19_CBICA_AAM_1": (5, "A")})


def one_more_chest(folder):
    """Lesson 07 needs seven chests; this one is not in the table of phenotypes."""
    hu, grid, _ = lookalike.chest(6)
    lookalike.save(folder / "10011W" / "10011W_INSP_STD_NJC_COPD.nii.gz", hu, grid)


def data(sets, folder, more=None):
    with mock.patch.multiple(lookalike, **SMALL):
        for name in sets:
            lookalike.write(name, folder / name if len(sets) > 1 else folder)
        if more:
            more(folder)
    return folder


def require_promise(sets, folder, tmp_path, lessons="01,02,03,05,06,07"):
    """Run lessons; those that `verify` calls usable end well, the others refuse in their first cell. Returns the usable ones."""
    report = verify(sets[0] if len(sets) == 1 else "own", folder)
    command = [sys.executable, "-m", "medsynth_lib.course", "run", "--profile", "quick", "--only", lessons]
    command += ["--out", str(tmp_path / "out"), "--data-dir", str(folder)]
    env = os.environ | dict(MEDSYNTH_CACHE=str(tmp_path.parent / "cache"), MEDSYNTH_HEADLESS="1")
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["notebooks"]
    status = {row["name"][:2]: row["status"] for row in summary}
    promised = {lesson: report.lessons[lesson][0] for lesson in lessons.split(",")}
    assert {lesson: word == "ok" for lesson, word in status.items()} == promised, done.stdout[-3000:]
    for row in summary:
        if row["status"] != "ok":
            require_refused_at_once(tmp_path / "out" / f"{row['name']}.ipynb")
    for lesson in (lesson for lesson, runs in promised.items() if runs):
        results = json.loads((tmp_path / "out" / lesson / "results.json").read_text())["results"]
        assert all(math.isfinite(row["value"]) for row in results if isinstance(row["value"], float)), lesson
    return "".join(f"{lesson} " for lesson, runs in promised.items() if runs).strip()


def require_refused_at_once(notebook):
    """The one error is in the cell that opens the lesson, and says what to do."""
    cells = [cell for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    errors = [(cell.source, o) for cell in cells for o in cell.outputs if o.output_type == "error"]
    ((source, error),) = errors
    assert "open_lesson(" in source and error.ename == "DataError" and "cannot be used in lesson" in error.evalue


def test_the_matrix_is_covered():
    """Whoever adds a data set must say which test runs it."""
    tested = {name for sets in PAIRS + VOLUMES for name in sets}
    assert tested == set(registry.load())
    assert {name for name in tested if refusal(name, "pairs")} == {name for sets in VOLUMES for name in sets}


def printed(notebook, marker):
    """What the one code cell with ``marker`` in its source printed, or the error it raised."""
    (cell,) = [c for c in nbformat.read(notebook, 4).cells if c.cell_type == "code" and marker in c.source]
    return "".join(output.get("text", "") + output.get("evalue", "") for output in cell.outputs)


# One class a group: the test runner gives each to a worker of its own.
class TestPairs:
    @pytest.mark.timeout(1800)
    def test_lessons_run_on_the_fewest_pairs(self, tmp_path):
        folder = data(["brats2019"], tmp_path / "data", one_more_case)
        assert require_promise(["brats2019"], folder, tmp_path, "01,02,03") == "01 02 03"
        first = printed(tmp_path / "out" / "01_data_preparation.ipynb", "manifest = lesson_manifest(lesson")
        assert "7 simulated scans" in first and "SIMA" not in first and "is not used here" not in first
        results = json.loads((tmp_path / "out" / "02" / "results.json").read_text())["results"]
        scores = [row for row in results if row["name"].endswith("/psnr")]
        assert len(scores) == 4 and all("simulated" in row["note"] for row in scores)  # two models at two sites


class TestVolumes:
    @pytest.mark.timeout(1800)
    def test_lessons_run_on_the_fewest_volumes(self, tmp_path):
        folder = data(["copdgene"], tmp_path / "data", one_more_chest)
        assert require_promise(["copdgene"], folder, tmp_path, "01,02,05,06,07") == "01 05 06 07"
        reason = refusal("copdgene", "pairs")
        assert reason in printed(tmp_path / "out" / "01_data_preparation.ipynb", "manifest = lesson_manifest(lesson")
        volumes = printed(tmp_path / "out" / "01_data_preparation.ipynb", "chests = lesson_volumes(lesson")
        assert volumes.count("is not used here") == 1  # the chests are used and not the brains
        assert reason in printed(tmp_path / "out" / "02_pix2pix_backbone.ipynb", "open_lesson(")


class TestMatrix:
    @pytest.mark.skipif(not FULL, reason="hours: MEDSYNTH_MATRIX=full runs it")
    @pytest.mark.timeout(7200)
    @pytest.mark.parametrize("sets", MATRIX, ids=names)
    def test_every_lesson_on_every_set(self, sets, tmp_path):
        usable = require_promise(sets, data(sets, tmp_path / "data"), tmp_path)
        assert ("02" in usable) == (sets in PAIRS) and "01" in usable
