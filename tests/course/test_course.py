"""Profiles, results, exercises, student copies, and the runner with its report on tiny notebooks."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import psutil
import pytest

from medsynth_lib import cli
from medsynth_lib.course import check, execute, open_lesson, report
from medsynth_lib.course.exercises import ExerciseNotSolved
from medsynth_lib.course.results import Results, compare, compare_run
from medsynth_lib.course.student import student_copy
from medsynth_lib.files import DataError, reserved
from medsynth_lib.processes import headless
from medsynth_lib.settings import Lesson01Settings

PARAMETERS = 'PROFILE = ""\nSEED = 0\nDATA_DIR = ""\nOUT_DIR = ""\nOVERRIDES = {}'
PROFILE = '"01": {montage_subjects: 3}\n'
TEXT = r"""# 01. Good

An inline $\mathcal{L}_{x*y*z} < \hat{x}$, \$5 and \$6, code `$kept$` and ``$$kept too$$``.

$$
\sum_{i=1}^{N} \Bigl\{ x_i \Bigr\}
$$

\begin{align}
a &= b \\
c &= d
\end{align}

| symbol | meaning |
| --- | --- |
| $|x|$ | magnitude |

```python
cost = "$fenced$"
```

## About $\beta$

[a paper](https://arxiv.org/abs/2409.00000)
"""


def cell(source, *tags, **metadata):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags), **metadata})


def write_book(path, *cells):
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata=metadata), path)


GOOD = [
    nbformat.v4.new_markdown_cell(TEXT),
    cell(PARAMETERS, "parameters"),
    cell(
        "from medsynth_lib.course import check, open_lesson\n"
        'lesson = open_lesson("01", PROFILE, SEED, DATA_DIR, OUT_DIR, OVERRIDES)'
    ),
    cell("def double(x):\n    ...", "exercise"),
    cell("def double(x):\n    return 2 * x", "solution", jupyter={"source_hidden": True}),
    cell('with check("double"):\n    assert double(2) == 4', "check"),
    cell(
        "import matplotlib.pyplot as plt\nfigure, _ = plt.subplots(figsize=(2, 1))\n"
        'lesson.results.figure(figure, "An empty <axis>")\n'
        'lesson.results.record("psnr/svae", 21.934, unit="dB", paper=22.217)'
    ),
]


def course(*arguments, **options):
    command = [sys.executable, "-m", "medsynth_lib.course", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "quick.yaml").write_text(PROFILE)
    return tmp_path


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One run of a good, a failing and a wrongly parametrised notebook."""
    folder, out = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("out")
    (folder / "profiles").mkdir()
    (folder / "profiles" / "quick.yaml").write_text(PROFILE)
    write_book(folder / "01_good.ipynb", *GOOD)
    write_book(folder / "02_bad.ipynb", cell(PARAMETERS, "parameters"), cell("print('so far')"), cell("1 / 0"))
    write_book(folder / "03_odd.ipynb", cell('PROFILE = ""', "parameters"))
    (folder / "04_torn.ipynb").write_text('{"cells": [')
    done = course("run", "--profile", "quick", "--out", out, "--jobs", 2, "--notebooks", folder)
    return out, done, json.loads((out / "summary.json").read_text())


# ---- profiles and lessons


def test_lesson_takes_what_is_empty_from_the_environment(folder, monkeypatch, capsys):
    monkeypatch.setenv("MEDSYNTH_NOTEBOOKS", str(folder))
    monkeypatch.setenv("MEDSYNTH_PROFILE", "quick")
    monkeypatch.setenv("MEDSYNTH_OUT_DIR", str(folder / "out"))
    monkeypatch.setenv("DATA_DIR", str(folder))
    lesson = open_lesson("01", "", 3, "", "", {"cube_size": 16})
    assert lesson.out == folder.resolve() / "out" / "01" and lesson.out.is_dir()
    assert (lesson.profile, lesson.seed, lesson.settings.cube_size) == ("quick", 3, 16)
    assert isinstance(lesson.settings, Lesson01Settings) and lesson.settings.montage_subjects == 3
    assert lesson.data_dir == folder.resolve()
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "profile quick" in line and "torch" in line
    with pytest.raises(FileNotFoundError, match="DATA_DIR"):
        open_lesson("01", data_dir=str(folder / "none"))
    with pytest.raises(ValueError, match="SEED"):
        open_lesson("01", seed=-1)


def test_headless_without_a_kernel_or_by_request(monkeypatch):
    monkeypatch.delenv("MEDSYNTH_HEADLESS", raising=False)
    assert headless()
    monkeypatch.setenv("MEDSYNTH_HEADLESS", "1")
    assert headless()


# ---- results


def test_results_are_recorded_replaced_and_tabled(tmp_path):
    results = Results(tmp_path / "01" / "results.json", "01", "quick", 0)
    results.record("a/psnr", 1.0, unit="dB", paper=22.217)
    results.record("a/psnr", np.float32(2.5), unit="dB", paper=22.217)
    results.record("a/same", np.bool_(True))
    results.record("a/late", "not run", note="needs a GPU")
    stored = json.loads((tmp_path / "01" / "results.json").read_text())
    assert [stored[key] for key in ("notebook", "profile", "seed")] == ["01", "quick", 0]
    row = {"name": "a/psnr", "value": 2.5, "unit": "dB", "paper": 22.217, "note": ""}
    assert stored["results"][0] == row and len(stored["results"]) == 3
    table = results.table()
    assert list(table.columns) == ["measured here", "unit", "paper", "note"]
    assert list(table.loc["a/psnr"]) == ["2.5", "dB", "22.22", ""]
    assert os.listdir(tmp_path / "01") == ["results.json"]


@pytest.mark.parametrize("value", [float("nan"), np.inf, "later", None, [1]])
def test_a_result_must_be_a_number(tmp_path, value):
    results = Results(tmp_path / "results.json")
    with pytest.raises(ValueError, match="a/psnr"):
        results.record("a/psnr", value)
    assert json.loads((tmp_path / "results.json").read_text())["results"] == []


def test_what_could_not_be_measured_is_not_run_and_says_so(tmp_path):
    results = Results(tmp_path / "results.json")
    results.record_measured("a/slope", np.float32(1.5), "SD/SD", 1.0, "of six starts")
    results.record_measured("a/nothing", float("nan"), "SD/SD", note="of six starts")
    one, two = json.loads((tmp_path / "results.json").read_text())["results"]
    assert one == {"name": "a/slope", "value": 1.5, "unit": "SD/SD", "paper": 1.0, "note": "of six starts"}
    assert (two["value"], two["note"]) == ("not run", "run, not measurable: of six starts")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    results = Results(tmp_path / "results.json")
    results.record("a", 1)
    before = (tmp_path / "results.json").read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DataError, match="results.json: cannot be written"):
        results.record("b", 2)
    assert (tmp_path / "results.json").read_bytes() == before and os.listdir(tmp_path) == ["results.json"]


def test_compare_lists_what_is_missing_or_out_of_tolerance(tmp_path):
    results = Results(tmp_path / "results.json")
    for name, value in {"good": 1.04, "far": 2.0, "flag": True, "late": "not run"}.items():
        results.record(name, value)
    reference = {name: {"value": 1.0, "tolerance": 0.05, "reason": "seeds"} for name in ("good", "far", "late", "gone")}
    reference["flag"] = {"value": True, "tolerance": 0, "reason": "an identity"}
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    violations = compare(tmp_path / "results.json", tmp_path / "reference.json")
    assert [line.split()[0] for line in violations] == ["far", "late", "gone"]


# ---- exercises and student copies


def test_check_says_what_failed_and_hints(capsys):
    with check("double"):
        assert 2 * 2 == 4
    assert capsys.readouterr().out == "✓ double\n"
    with pytest.raises(ExerciseNotSolved, match="(?s)double: 3 is odd.*Hint: multiply"):
        with check("double", hint="multiply"):
            raise AssertionError("3 is odd")
    with pytest.raises(ExerciseNotSolved, match=r"does not hold yet  \(at `raise AssertionError`\)"):
        with check("one"):
            raise AssertionError
    with pytest.raises(ExerciseNotSolved, match="TypeError"):
        with check("none"):
            len(None)
    with pytest.raises(ExerciseNotSolved, match="not written yet"):
        with check("stub"):
            raise NotImplementedError


def test_student_copy_has_no_solutions_and_no_outputs(tmp_path):
    cells = [*GOOD, nbformat.v4.new_markdown_cell("Twice.", metadata={"tags": ["solution"]})]
    cells[2] = cell("1 + 1")
    cells[2].update(execution_count=1, outputs=[nbformat.v4.new_output("stream", text="2")])
    write_book(tmp_path / "01_good.ipynb", *cells)
    student_copy(tmp_path / "01_good.ipynb", tmp_path / "student" / "01_good.ipynb")
    copy = nbformat.read(tmp_path / "student" / "01_good.ipynb", as_version=4)
    tags = [tag for each in copy.cells for tag in each.metadata.get("tags", [])]
    assert tags == ["parameters", "exercise", "check"]
    assert all(not each.get("outputs") and each.get("execution_count") is None for each in copy.cells)
    nbformat.validate(copy)


def test_student_command(folder):
    write_book(folder / "01_good.ipynb", *GOOD)
    done = course("student", "--out", folder / "student", "--notebooks", folder)
    assert done.returncode == 0 and (folder / "student" / "01_good.ipynb").is_file()
    assert done.stdout.startswith("student copies: 1 notebooks in")


# ---- runner and report


@pytest.mark.slow
def test_run_keeps_going_and_exits_1(ran):
    out, done, summary = ran
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1].startswith("report: ")
    assert {"profile", "started", "versions", "notebooks"} == set(summary) and summary["profile"] == "quick"
    rows = summary["notebooks"]
    assert [row["name"] for row in rows] == ["01_good", "02_bad", "03_odd", "04_torn"]
    assert [row["status"] for row in rows] == ["ok", "failed", "failed", "failed"]
    assert set(rows[0]) == {"name", "status", "seconds", "peak_mib", "executed", "error"}
    assert rows[0]["seconds"] > 0 and rows[0]["peak_mib"] > 100 and rows[0]["error"] is None
    assert re.search(r"^01 good \.\.\. ok [\d.]+ s \d+ MiB$", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_a_failing_cell_leaves_the_partial_notebook_and_its_error(ran):
    out, _, summary = ran
    row = summary["notebooks"][1]
    assert row["error"].startswith("cell [4]: ") and row["error"].endswith("ZeroDivisionError: division by zero")
    assert "so far" in (out / row["executed"]).read_text() and (out / "02.stderr.txt").stat().st_size
    assert "ZeroDivisionError" in (out / "index.html").read_text()


@pytest.mark.slow
def test_unknown_parameters_and_torn_files_fail_before_anything_runs(ran):
    odd, torn = ran[2]["notebooks"][2:]
    assert "OUT_DIR, DATA_DIR" in odd["error"] and odd["executed"] is None
    assert "04_torn.ipynb cannot be read" in torn["error"] and torn["executed"] is None


@pytest.mark.slow
def test_report_needs_no_network(ran):
    out = ran[0]
    for path in sorted(out.glob("*.html")):
        page = path.read_text()
        assert not re.search(r"https?://\S*(cdn|unpkg|jsdelivr)", page), path
        assert not re.search(r"""(src|poster|data)\s*=\s*["'](?!data:)""", page), path
        assert not re.search(r"<link\b|@import|url\((?!['\"]?data:|['\"]?#)", page), path
        assert all(tag.startswith("<a") for tag in re.findall(r"<\w+[^>]*href=[\"']http", page)), path
    assert {path.name for path in out.glob("*.html")} == {"index.html", "01_good.html", "02_bad.html"}


@pytest.mark.slow
def test_report_shows_equations_solutions_numbers_and_figure(ran):
    page, index = ((ran[0] / name).read_text() for name in ("01_good.html", "index.html"))
    assert page.count("<math") == 5 and len(re.findall('<math[^>]*display="block"', page)) == 2
    assert "$5 and $6" in page and "<code>$kept$</code>" in page and "<code>$$kept too$$</code>" in page
    assert "fenced$" in page and "equation" not in re.sub(r"(?s)<style.*?</style>", "", page)
    assert re.search(r'<details class="solution">.*return', page, re.DOTALL)
    assert "21.93" in index and "22.22" in index and "An empty &lt;axis&gt;" in index and "image/png" in index


def test_equations_that_cannot_be_converted_stay_readable():
    match = report.MATH.search(r"$\left( x$")
    assert "left(" in report.mathml(match)


@pytest.mark.slow
def test_report_command(ran, tmp_path):
    (ran[0] / "index.html").unlink()
    assert course("report", ran[0]).returncode == 0 and (ran[0] / "index.html").is_file()
    assert course("report", tmp_path).returncode == 2


@pytest.mark.slow
def test_wrong_requests_exit_2_and_name_what_is_valid(folder):
    write_book(folder / "01_good.ipynb", *GOOD)
    done = course("run", "--notebooks", folder, "--out", folder / "out", "--only", "07")
    assert done.returncode == 2 and "07: no such notebook; there are 01" in done.stderr
    done = course("run", "--notebooks", folder, "--out", folder / "out", "--profile", "huge")
    assert done.returncode == 2 and "quick" in done.stderr and not (folder / "out").exists()


def run_here(folder, out, **options):
    return cli.main(["run", "--notebooks", str(folder), f"--out={out}", *[f"--{k}={v}" for k, v in options.items()]])


def test_a_run_never_replaces_a_file_or_the_notebooks_themselves(folder, capsys, monkeypatch):
    write_book(folder / "01_good.ipynb", *GOOD)
    (folder / "README.md").write_text("kept")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for out, word in {"README.md": "no folder", "README.md/x": "no folder", folder: "notebooks themselves",
                      ".": "notebooks themselves", "link": "notebooks themselves"}.items():  # fmt: skip
        assert run_here(folder, out) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and word in error and "choose another" in error
    assert cli.main(["student", "--notebooks", str(folder), "--out", str(folder)]) == 2
    assert "notebooks themselves" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_data_that_are_no_folder_are_refused_before_anything_is_made(folder, capsys):
    write_book(folder / "01_good.ipynb", *GOOD)
    for wrong in (folder / "01_good.ipynb", folder / "none"):
        assert run_here(folder, folder / "out", **{"data-dir": wrong}) == 2
        assert f"--data-dir {wrong} is not a folder" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_folder_in_use_is_refused(folder, capsys):
    write_book(folder / "01_good.ipynb", *GOOD)
    with reserved(folder / "out"):
        assert run_here(folder, folder / "out") == 2
    assert f"{folder / 'out'}: is in use by another run" in capsys.readouterr().err
    assert not (folder / "out" / "summary.json").exists()


def test_results_go_below_home_or_are_refused(folder, monkeypatch):
    monkeypatch.setenv("MEDSYNTH_NOTEBOOKS", str(folder))
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.chdir(folder)
    assert (
        open_lesson("01", "quick", out_dir="~/out").out == folder / "home" / "out" / "01"
        and not (folder / "~").exists()
    )
    (folder / "file").touch()
    with pytest.raises(DataError, match="OUT_DIR .*file/01: cannot be made"):
        open_lesson("01", "quick", out_dir=folder / "file")


@pytest.mark.slow
def test_a_run_takes_any_path_and_any_terminal(folder):
    """Braces, quotes, $, # and letters beyond ASCII, in all that a user names; ~ and a relative cache."""
    odd = 'st\u00fcdy {x} {PROFILE} #2 O\'Brien "$HOME"'
    notebooks, data = folder / f"nb {odd}", folder / f"data {odd}"
    notebooks.mkdir()
    data.mkdir()
    (folder / "profiles").rename(notebooks / "profiles")
    found = "from medsynth_lib.files import cache_folder\nprint(lesson.data_dir.name, '\u00b1', cache_folder())"
    write_book(notebooks / "01_good.ipynb", *GOOD, cell(found))
    environment = os.environ | dict(PYTHONIOENCODING="ascii", LC_ALL="C", HOME=str(folder), MEDSYNTH_CACHE="ca{c}he")
    paths = ["--notebooks", notebooks, "--out", f"~/out {odd}", "--data-dir", data]
    done = course("run", *paths, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    out = folder / f"out {odd}"
    assert {"index.html", "01_good.html", "01_good.ipynb", "summary.json", "01"} <= {
        path.name for path in out.iterdir()
    }
    text = nbformat.read(out / "01_good.ipynb", as_version=4).cells[-1].outputs[0].text
    assert text == f"{data.name} \u00b1 {folder / 'ca{c}he'}\n"
    assert not (folder / "~").exists() and (folder / "ca{c}he").is_dir()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_killed_run_leaves_nothing_that_writes_on(folder):
    started = folder / "started"
    sleep = f"import os, time, pathlib\npathlib.Path({str(started)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    write_book(folder / "01_long.ipynb", cell(PARAMETERS, "parameters"), cell(sleep))
    command = [sys.executable, "-m", "medsynth_lib.course", "run", "--notebooks", folder, "--out", folder / "out"]
    runner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run_here(folder, folder / "out") == 2  # in use
    runner.kill()
    runner.communicate(timeout=60)
    kernel = int(started.read_text())
    while psutil.pid_exists(kernel) and psutil.Process(kernel).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline + 30, "the notebook goes on"
        time.sleep(0.1)
    with reserved(folder / "out"):  # the next run may begin
        pass


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_the_children_and_keeps_the_summary(folder):
    started = folder / "started"
    sleep = f"import os, time, pathlib\npathlib.Path({str(started)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    write_book(folder / "01_long.ipynb", cell(PARAMETERS, "parameters"), cell(sleep))
    write_book(folder / "02_next.ipynb", cell(PARAMETERS, "parameters"))
    command = [sys.executable, "-m", "medsynth_lib.course", "run", "--notebooks", folder, "--out", folder / "out"]
    runner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    runner.send_signal(signal.SIGINT)
    runner.communicate(timeout=60)
    assert runner.returncode == 130
    rows = json.loads((folder / "out" / "summary.json").read_text())["notebooks"]
    assert [row["status"] for row in rows] == ["interrupted", "interrupted"]
    assert not psutil.pid_exists(int(started.read_text())) and (folder / "out" / "index.html").is_file()


@pytest.mark.slow
def test_outputs_of_a_run_are_written_back_as_if_by_hand(tmp_path):
    import matplotlib.pyplot as plt

    from medsynth_lib.course.committed_outputs import commit_outputs

    figure, axis = plt.subplots()
    axis.imshow(np.random.default_rng(0).random((200, 200)))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    png = base64.b64encode(buffer.getvalue()).decode()
    cell = nbformat.v4.new_code_cell("x = 1", id="a")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "course.ipynb")
    output = nbformat.v4.new_output("display_data", data={"image/png": png})
    ran = nbformat.v4.new_code_cell("x = 1", id="a", execution_count=2, outputs=[output], metadata={"papermill": {}})
    injected = nbformat.v4.new_code_cell("x = 2", id="b", metadata={"tags": ["injected-parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[injected, ran]), tmp_path / "run.ipynb")
    commit_outputs(tmp_path / "run.ipynb", tmp_path / "course.ipynb")
    (written,) = nbformat.read(tmp_path / "course.ipynb", as_version=4).cells
    assert (
        written.execution_count == 1
        and not written.metadata
        and 0 < len(written.outputs[0].data["image/png"]) < len(png)
    )
    ran.source = "x = 3"
    nbformat.write(nbformat.v4.new_notebook(cells=[ran]), tmp_path / "run.ipynb")
    with pytest.raises(ValueError, match="another version of course.ipynb"):
        commit_outputs(tmp_path / "run.ipynb", tmp_path / "course.ipynb")


def test_compare_command_fails_on_a_value_out_of_tolerance(tmp_path):
    row = {"name": "simulator/brain volume", "value": 2000.0, "unit": "ml", "paper": None, "note": ""}
    (tmp_path / "01").mkdir()
    (tmp_path / "01" / "results.json").write_text(json.dumps({"profile": "quick", "results": [row]}))
    assert compare_run(tmp_path) == 1
    assert compare_run(tmp_path / "01") == 2


def test_an_executed_notebook_is_written_now_and_then_and_at_the_end(monkeypatch):
    written, now = [], [0.0]
    monkeypatch.setattr(execute.engines, "write_ipynb", lambda nb, path: written.append(now[0]))
    monkeypatch.setattr(execute.time, "monotonic", lambda: now[0])
    manager = execute.SeldomSaving(nbformat.v4.new_notebook(), "x.ipynb", progress_bar=False)
    for _ in range(50):
        manager.save()
        now[0] += 0.3
    assert len(written) == 2 and written[1] - written[0] >= execute.EVERY
    manager.end_time = manager.now()
    manager.save()
    assert len(written) == 3


def test_the_grammar_of_web_addresses_is_not_read():
    code = "import sys, medsynth_lib.course, nbformat; print('lark' in sys.modules, 'rfc3987_syntax' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False False\n"
    )


def test_what_no_run_wrote_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "01").mkdir()
    for command, name in {"report": "summary.json", "compare": "01/results.json", "outputs": "01_mine.ipynb"}.items():
        for content in (b"", b"{", b"[]", b"{}", b'"x"', b"\xff\xfe"):
            (tmp_path / name).write_bytes(content)
            assert cli.main([command, str(tmp_path)]) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and str(tmp_path / name) in error, (command, content)
        (tmp_path / name).unlink()
        assert cli.main([command, str(tmp_path)]) == 2
        assert capsys.readouterr() != ("", "")
    assert not list(tmp_path.glob("*.html"))
