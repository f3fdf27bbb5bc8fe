"""The command line: what its help says, how it refuses, and that the older paths lead to it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medsynth_lib import cli

COMMANDS = ("run", "student", "compare", "report", "outputs", "sweep", "adapt", "memory", "data")
HEAVY = ("torch", "monai", "pandas", "nbformat", "matplotlib", "numpy")


def call(*command, **options):
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, **options)


def help_of(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_overview_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from medsynth_lib import cli; cli.make_parser().print_help(); print(*sys.modules, file=sys.stderr)"
    )
    done = call("-c", code)
    assert not set(HEAVY) & set(done.stderr.split())
    for command in COMMANDS:
        assert f"\n    {command} " in done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in cli.HANDED_OVER])
def test_help_says_what_it_does_defaults_and_an_example(command, capsys):
    text = help_of(command, capsys)
    assert f"example:\n  medsynth {command} " in text and ".\n\n" in text
    parser = cli.make_parser()._subparsers._group_actions[0].choices[command]
    for action in parser._actions:
        assert action.help, f"{command} {action.dest}"
        if action.option_strings and action.dest != "help" and not action.required:
            assert "default: " in action.help, f"{command} {action.dest}"


def test_commands_with_a_command_line_of_their_own_get_all_words(monkeypatch):
    heard = []
    monkeypatch.setitem(cli.HANDED_OVER, "memory", lambda words: heard.append(words) or 3)
    assert cli.main(["memory", "HA-GAN", "--size", "64"]) == 3 and heard == [["HA-GAN", "--size", "64"]]


@pytest.mark.slow
def test_data_runs_the_downloader():
    done = call("-m", "medsynth_lib.cli", "data", "list")
    assert done.returncode == 0 and "ixi" in done.stdout
    assert call("-m", "medsynth_lib.cli", "data", "describe", "nothing").returncode == 1


def test_every_study_of_the_sweep_is_offered():
    """The command line repeats their names, since it imports nothing heavy."""
    from medsynth_lib.experiments import sweep

    assert tuple(sweep.STUDIES) == cli.STUDIES


def test_options_reach_the_function(monkeypatch):
    from medsynth_lib.course import run

    heard = []
    monkeypatch.setattr(run, "run_notebooks", lambda *asked: heard.append(asked) or 0)
    assert cli.main(["run", "--profile", "lesson", "--only", "02", "--jobs", "2", "--data-dir", "scans"]) == 0
    assert heard == [("lesson", "02", None, 2, "scans", None, 3600)]


@pytest.mark.parametrize(
    "words", [["run", "--jobs", "0"], ["run", "--jobs", "many"], ["sweep", "everything"], ["fly"], []]
)
def test_requests_without_sense_are_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2 and "usage: medsynth" in capsys.readouterr().err


@pytest.mark.parametrize(
    "older, words",
    {
        "medsynth_lib.course": ["run", "--help"],
        "medsynth_lib.training.adaptation": ["--help"],
        "medsynth_lib.evaluation.memory": ["--help"],
        "data_download": ["--help"],
    }.items(),
)
@pytest.mark.slow
def test_older_paths_go_on_working(older, words):
    done = call("-m", older, *words)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr


@pytest.mark.slow
def test_nothing_is_adapted_without_a_model(tmp_path, capsys):
    paths = ["--model", str(tmp_path / "none"), "--target", str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main(["adapt", *paths]) == 2
    assert capsys.readouterr().err.startswith("error: ")


ODD = [
    "build/{study}",
    "/data/O'Brien",
    "/d/$x/$$y/$(z",
    'a "b" #2',
    "`id` $(shell id) ; id",
    "-a",
    "~/x",
    "b\\",
    "\u00e9",
]


@pytest.mark.parametrize("by", ["word", "environment"])
@pytest.mark.parametrize("odd", ODD)
def test_make_passes_what_was_typed(tmp_path, odd, by):
    """Neither make nor the shell reads what a user gives for a folder."""
    shutil.copy(Path(__file__).parents[1] / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt", "requirements.lock", ".venv/stamp", ".venv/bin/medsynth"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(
            '#!/bin/sh\nfor word in "$@"; do printf "[%s]" "$word"; done; printf "[%s]" "$DATA_DIR"\n'
        )
        (tmp_path / name).chmod(0o755)
    given = {"OUT": odd, "DATA_DIR": odd, "ONLY": "01"}
    words = [f"{name}={value}" for name, value in given.items()] if by == "word" else []
    known = {
        k: v
        for k, v in os.environ.items()
        if k not in ("PROFILE", "JOBS", "REFERENCE") and "MAKE" not in k and k != "MFLAGS"
    }
    environment = known | (given if by == "environment" else {})
    done = subprocess.run(["make", "run", *words], cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert done.stdout == f"[run][--profile=quick][--only=01][--jobs=1][--out={odd}][--data-dir={odd}][{odd}]", (
        done.stderr
    )
