"""Every cell of the matrix data set x lesson: lessons 01 and 02 run, by DATA_DIR alone, on folders that look like the real ones,
or refuse with the registry's reason. The images are simulated."""

import json
import os
import subprocess
import sys

import nbformat
import pytest

from data_download import lookalike, registry
from medsynth_lib.data.files.published import refusal

PAIRS = [["brats2019"], ["brats2020"], ["msd_task01"], ["ixi"], ["upenn_gbm", "ucsf_pdgm"]]
VOLUMES = [["gsp"], ["copdgene"], ["lidc"]]

pytestmark = pytest.mark.slow  # notebooks are run


def names(sets):
    return "+".join(sets)


def run(sets, lessons, tmp_path):
    data = tmp_path / "data"
    for name in sets:
        lookalike.write(name, data / name if len(sets) > 1 else data)
    command = [sys.executable, "-m", "medsynth_lib.course", "run", "--profile", "quick", "--only", lessons]
    command += ["--out", str(tmp_path / "out"), "--data-dir", str(data)]
    env = os.environ | dict(MEDSYNTH_CACHE=str(tmp_path.parent / "cache"), MEDSYNTH_HEADLESS="1")
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    return done, tmp_path / "out"


def test_the_matrix_is_covered():
    """Whoever adds a data set must say which test runs it."""
    tested = {name for sets in PAIRS + VOLUMES for name in sets}
    assert tested == set(registry.load())
    assert {name for name in tested if refusal(name, "pairs")} == {name for sets in VOLUMES for name in sets}


def printed(notebook, marker):
    """What the one code cell with ``marker`` in its source printed, or the error it raised."""
    (cell,) = [c for c in nbformat.read(notebook, 4).cells if c.cell_type == "code" and marker in c.source]
    return "".join(output.get("text", "") + output.get("evalue", "") for output in cell.outputs)


def require_pairs(sets, tmp_path):
    done, out = run(sets, "01,02", tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first = printed(out / "01_data_preparation.ipynb", "manifest = lesson_manifest(lesson")
    assert "simulated scans" in first and "SIMA" not in first and "is not used here" not in first
    results = json.loads((out / "02" / "results.json").read_text())["results"]
    scores = [row for row in results if row["name"].endswith("/psnr")]
    assert len(scores) == 4 and all("simulated" in row["note"] for row in scores)  # two models at two sites


# One class a group: the test runner gives each to a worker of its own.
class TestBrats:
    @pytest.mark.parametrize("sets", PAIRS[:3], ids=names)
    def test_lessons_run_on_pairs(self, sets, tmp_path):
        require_pairs(sets, tmp_path)


class TestOtherPairs:
    @pytest.mark.parametrize("sets", PAIRS[3:], ids=names)
    def test_lessons_run_on_pairs(self, sets, tmp_path):
        require_pairs(sets, tmp_path)


class TestVolumes:
    @pytest.mark.parametrize("sets", VOLUMES, ids=names)
    def test_lesson_01_takes_volumes_and_02_refuses_them(self, sets, tmp_path):
        done, out = run(sets, "01,02", tmp_path)
        status = {row["name"][:2]: row["status"] for row in json.loads((out / "summary.json").read_text())["notebooks"]}
        assert done.returncode == 1 and status["01"] == "ok" and status["02"] != "ok", done.stdout[-3000:]
        reason = refusal(sets[0], "pairs")
        assert reason in printed(out / "01_data_preparation.ipynb", "manifest = lesson_manifest(lesson")
        volumes = printed(out / "01_data_preparation.ipynb", "chests = lesson_volumes(lesson")
        assert volumes.count("is not used here") == 1  # the chests are used and not the brains, or the other way round
        assert reason in printed(out / "02_pix2pix_backbone.ipynb", "manifest = lesson_manifest(lesson")
