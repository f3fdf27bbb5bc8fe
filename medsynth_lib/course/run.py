"""The batch runner: every notebook in its own papermill process, then one report."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from medsynth_lib.course.report import write_report
from medsynth_lib.course.student import read_notebook, require_apart
from medsynth_lib.files import DataError, atomic, full_path, reserved
from medsynth_lib.settings import BASE, notebooks_folder

PACKAGES = ("medsynth", "torch", "monai", "numpy", "lightning-fabric", "papermill")


def run_notebooks(
    profile: str = "quick",
    only: str = "",
    out: str | Path | None = None,
    jobs: int = 1,
    data_dir: str | Path | None = None,
    notebooks: str | Path | None = None,
    cell_timeout: int = 3600,
) -> int:
    """Execute notebooks, each in its own process, and write one report.

    Args:
        profile: name of a profile.
        only: numbers of the notebooks, such as "01,02"; "" runs all.
        out: folder of executed notebooks, results and report; None: build/PROFILE.
        jobs: notebooks at a time; they share the cores.
        data_dir: folder of real data; None: simulated subjects.
        notebooks: folder of NN_*.ipynb and profiles/; None: the course's.
        cell_timeout: seconds that a cell may take.

    Returns: the exit status: 0 where every notebook ran, 1 where one failed, 2 for a wrong request, 130 after Ctrl-C.
    Raises: DataError for a folder `out` that another run uses, or that cannot be written.
    """
    try:
        folder = full_path(notebooks or notebooks_folder()).resolve()
        target = full_path(out or Path("build") / profile).resolve()
        paths = select(folder, only, profile)
        require_apart(target, folder)
        scans = full_path(data_dir).resolve() if data_dir else None
        if scans and not scans.is_dir():
            raise ValueError(f"--data-dir {data_dir} is not a folder; correct it, or leave it out to simulate.")
        parameters = {"PROFILE": profile, "OUT_DIR": str(target), "DATA_DIR": str(scans or "")}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    with reserved(target):
        return _run_and_report(paths, folder, target, parameters, jobs, cell_timeout)


def _run_and_report(
    paths: list[Path], folder: Path, out: Path, parameters: dict[str, str], jobs: int, cell_timeout: int
) -> int:
    """Run notebooks of a folder and write the report; the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a job in the background inherits an ignored SIGINT
        signal.signal(number, signal.default_int_handler)
    rows = run_all(paths, out, parameters, jobs, cell_timeout)
    print(f"report: {os.path.relpath(write_report(out, folder))}")
    states = {row["status"] for row in rows}
    return 130 if "interrupted" in states else int(states != {"ok"})


def select(folder: Path, only: str, profile: str) -> list[Path]:
    """List the notebooks NN_*.ipynb of a folder, or those whose numbers `only` has.

    Raises: ValueError for an unknown number or profile, naming what there is.
    """
    paths = {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    profiles = sorted({BASE, *(path.stem for path in (folder / "profiles").glob("*.yaml"))})
    if not paths:
        raise ValueError(f"{folder} holds no notebooks named NN_*.ipynb; give --notebooks.")
    if profile not in profiles:
        raise ValueError(f"Unknown profile {profile!r}; there are {', '.join(profiles)}.")
    wanted = [number.strip().zfill(2) for number in only.split(",")] if only else list(paths)
    for number in wanted:
        if number not in paths:
            raise ValueError(f"--only {number}: no such notebook; there are {', '.join(paths)}.")
    return [paths[number] for number in sorted(set(wanted))]


def run_all(paths: list[Path], out: Path, parameters: dict[str, str], jobs: int, cell_timeout: int) -> list[dict]:
    """Run notebooks, writing summary.json after each; Ctrl-C stops them and keeps the summary.

    Args:
        paths: the notebooks.
        out: folder of all that is written.
        parameters: values of the notebooks' parameters, by name.
        jobs: notebooks at a time.
        cell_timeout: seconds that a cell may take.

    Returns: a row a notebook, as in summary.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    summary = {
        "profile": parameters["PROFILE"],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": sys.version.split()[0]} | {name: version(name) for name in PACKAGES},
        "notebooks": rows,
    }
    stop = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(run_one, path, out, parameters, jobs, cell_timeout, stop) for path in paths]
        try:
            for future in as_completed(futures):
                rows.append(future.result())
                _write_summary(out, summary)
        except KeyboardInterrupt:
            stop.set()
            print("\nstopping ...", flush=True)
        rows[:] = [future.result() for future in futures]
    _write_summary(out, summary)
    return rows


def run_one(
    path: Path, out: Path, parameters: dict[str, str], jobs: int, cell_timeout: int, stop: threading.Event
) -> dict:
    """Run one notebook in a papermill process of its own.

    Args:
        path: the notebook.
        out: folder of all that is written.
        parameters: values of its parameters, by name.
        jobs: notebooks that share the cores.
        cell_timeout: seconds that a cell may take.
        stop: set where the notebook should end at once.

    Returns: its row of the summary: name, status, seconds, peak_mib, executed (a file name) and error.
    """
    title = path.stem.replace("_", " ")
    row: dict[str, Any] = {
        "name": path.stem,
        "status": "interrupted",
        "seconds": 0.0,
        "peak_mib": 0,
        "executed": None,
        "error": None,
    }
    if stop.is_set():
        return row
    if jobs == 1:
        print(f"{title} ... ", end="", flush=True)
    _remove_stale(path, out)
    if error := _unknown_parameters(path, parameters):
        row |= {"status": "failed", "error": error}
    else:
        row |= _execute(path, out, parameters, jobs, cell_timeout, stop)
    print("" if jobs == 1 else f"{title} ... ", end="")
    print(f"{row['status']} {row['seconds']:.1f} s {row['peak_mib']} MiB", flush=True)
    if row["status"] == "failed":
        print("    " + row["error"].replace("\n", "\n    "), flush=True)
    return row


def _execute(
    path: Path, out: Path, parameters: dict[str, str], jobs: int, cell_timeout: int, stop: threading.Event
) -> dict[str, Any]:
    """Run papermill on one notebook; what of its row is known then."""
    executed, log, started = out / path.name, out / f"{path.name[:2]}.stderr.txt", time.monotonic()
    command = _papermill(path, executed, parameters, cell_timeout)
    status, peak = _watch(command, log, _surroundings(path.parent, jobs), stop)
    seconds = round(time.monotonic() - started, 1)
    word = "interrupted" if status is None else "failed" if status else "ok"
    name, error = _outcome(executed, log, word)
    return {"status": word, "seconds": seconds, "peak_mib": peak, "executed": name, "error": error}


def _remove_stale(path: Path, out: Path) -> None:
    """Remove what an earlier run wrote for a notebook: it would pass for this run's."""
    executed, results = out / path.name, out / path.name[:2]
    for stale in (executed, executed.with_suffix(".html"), results / "results.json", results / "main.png"):
        stale.unlink(missing_ok=True)


def _papermill(path: Path, executed: Path, parameters: dict[str, str], cell_timeout: int) -> list[str]:
    """The command that executes one notebook."""
    paths = [str(each).replace("{", "{{").replace("}", "}}") for each in (path, executed)]  # papermill formats them
    command = [sys.executable, "-m", "medsynth_lib.course.execute", str(os.getpid()), *paths]
    command += ["--kernel", "python3", "--log-output"]
    command += ["--cwd", str(path.parent), "--no-progress-bar", "--execution-timeout", str(cell_timeout)]
    for name, value in parameters.items():
        command += ["--parameters_raw", name, value]
    return command


def _surroundings(notebooks: Path, jobs: int) -> dict[str, str]:
    """The environment of a notebook's process: its share of the cores, and no widgets."""
    cores = int(os.environ.get("MEDSYNTH_THREADS") or os.cpu_count() or 1)
    if hasattr(os, "sched_getaffinity"):  # fewer than the machine has, where a scheduler gave us fewer
        cores = min(cores, len(os.sched_getaffinity(0)))
    threads = str(max(1, cores // jobs))
    cache = os.environ.get("MEDSYNTH_CACHE")
    return os.environ | {
        # A notebook runs in a folder of its own, where a relative path would lead elsewhere.
        **({"MEDSYNTH_CACHE": str(full_path(cache))} if cache else {}),
        "MEDSYNTH_HEADLESS": "1",
        "MEDSYNTH_NOTEBOOKS": str(notebooks),
        "MEDSYNTH_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        # Threads that spin for long while they wait slow down whoever shares the cores. Threads that do not spin at all come
        # too late for the next layer of a small network.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "50000",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # a caller's Agg would lose every figure
    }


def _watch(
    command: list[str], log: Path, surroundings: dict[str, str], stop: threading.Event
) -> tuple[int | None, int]:
    """Exit status of a command (None: stopped) and its peak of resident memory in MiB."""
    peak = 0
    with open(log, "wb") as stream:  # a session of its own, so that Ctrl-C reaches the runner alone
        process = psutil.Popen(
            command, env=surroundings, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        while process.poll() is None and not stop.wait(1.0):  # to look five times a second takes an eighth of a core
            peak = max(peak, _resident(process))
        if process.poll() is None:
            _end(process)
            return None, peak // 2**20
    return process.returncode, peak // 2**20


def _resident(process: psutil.Process) -> int:
    """Bytes resident in a process and its children; shared pages count once on Linux."""
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            memory = each.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        pass
    return total


def _end(process: psutil.Process) -> None:
    """Terminate a process and its children; kill what is left after 5 s."""
    tree = [process, *process.children(recursive=True)]
    for each in tree:
        try:
            each.terminate()
        except psutil.NoSuchProcess:
            pass
    for each in psutil.wait_procs(tree, timeout=5)[1]:
        each.kill()


def _unknown_parameters(path: Path, parameters: dict[str, str]) -> str | None:
    """A sentence where the parameters cell lacks a name; papermill would only warn."""
    try:
        cells = read_notebook(path).cells
        tagged = [ast.parse(cell.source) for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    except (ValueError, SyntaxError) as error:
        return f"{path.name} cannot be read ({error}); restore it from git."
    names = {node.id for tree in tagged for node in ast.walk(tree) if isinstance(node, ast.Name)}
    missing = [name for name in parameters if name not in names]
    if missing:
        return f"{path.name}: the cell tagged parameters does not set {', '.join(missing)}; add it there."
    return None


def _outcome(executed: Path, log: Path, status: str) -> tuple[str | None, str | None]:
    """Name of the executed notebook (None: unreadable), and the end of the error."""
    try:
        cells = read_notebook(executed).cells
    except DataError:  # stopped before or while it was written
        cells = None
    error = None
    if status != "ok":
        error = "\n".join(_plain(log.read_text("utf-8", errors="replace")).strip().splitlines()[-8:])
    for cell in cells or []:
        for output in cell.get("outputs", []):
            if output.output_type == "error" and status == "failed":
                lines = _plain("\n".join(output.traceback)).strip("-\n").splitlines()[-8:]
                error = f"cell [{cell.execution_count}]: " + "\n".join(lines)
    return executed.name if cells is not None else None, error


def _plain(text: str) -> str:
    """Text of a terminal without its colours and its padding."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).replace(" " * 20, "")


def _write_summary(out: Path, summary: dict) -> None:
    """Write summary.json, its notebooks by name."""
    summary["notebooks"].sort(key=lambda row: row["name"])
    with atomic(out / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
