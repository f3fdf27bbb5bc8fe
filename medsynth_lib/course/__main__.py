"""Command line of the course: python -m medsynth_lib.course run | student | report | compare | keep | sweep | vae-sweep."""

import argparse
import importlib
import os
import sys
from pathlib import Path


def main() -> int:
    """Parse the command line and run the sub-command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m medsynth_lib.course", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    add = commands.add_parser("run", help="execute notebooks and write an HTML report")
    add.add_argument("--profile", default=os.environ.get("MEDSYNTH_PROFILE") or "quick", help="default: quick")
    add.add_argument("--only", default="", metavar="01,02", help="numbers of the notebooks; default: all")
    add.add_argument("--out", metavar="DIR", help="executed notebooks, results and report; default: build/PROFILE")
    add.add_argument("--jobs", type=_positive, default=1, help="notebooks at a time; they share the cores")
    add.add_argument("--data-dir", metavar="DIR", help="real data; default: simulated subjects")
    add.add_argument("--notebooks", metavar="DIR", help="folder of NN_*.ipynb and profiles/; default: the course's")
    add.add_argument("--cell-timeout", type=_positive, default=3600, metavar="SECONDS", help="default: 3600")
    add.set_defaults(module="run")

    add = commands.add_parser("student", help="copy the notebooks without solutions and outputs")
    add.add_argument("--out", default=str(Path("build", "student")), metavar="DIR", help="default: build/student")
    add.add_argument("--notebooks", metavar="DIR", help="folder of NN_*.ipynb; default: the course's")
    add.set_defaults(module="student")

    add = commands.add_parser("report", help="write the HTML report of an earlier run again")
    add.add_argument("out", metavar="DIR", help="the run's folder, which holds summary.json")
    add.set_defaults(module="report")

    add = commands.add_parser("compare", help="hold a run's results against the reference values in tests/reference")
    add.add_argument("out", metavar="DIR", help="the run's folder, which holds NN/results.json")
    add.set_defaults(module="results")

    add = commands.add_parser("keep", help="keep a run's outputs in the notebooks, as they are committed")
    add.add_argument("out", metavar="DIR", help="the run's folder, which holds the executed notebooks")
    add.set_defaults(module="committed_outputs")

    add = commands.add_parser(
        "sweep", help="run lesson 04's comparison cell by cell, then merge it into notebooks/sweeps"
    )
    add.add_argument("--profile", default="lesson", help="default: lesson")
    add.add_argument(
        "--only", default="", metavar="TEXT,TEXT", help="methods whose names hold one of these; default: all"
    )
    add.add_argument("--part", default="1/1", metavar="I/N", help="the I-th of N shares, for several machines")
    add.add_argument(
        "--jobs", type=_positive, default=1, help="processes, one thread each (MEDSYNTH_THREADS changes that)"
    )
    add.set_defaults(module="medsynth_lib.experiments.sweep")

    add = commands.add_parser(
        "vae-sweep", help="run lesson 03's comparisons longer and with seeds, merged into notebooks/sweeps"
    )
    add.add_argument("--profile", default="lesson", help="default: lesson")
    add.add_argument("--jobs", type=_positive, default=1, help="processes, one thread each")
    add.set_defaults(module="medsynth_lib.experiments.slice_vae")

    arguments = parser.parse_args()
    module = arguments.module if "." in arguments.module else f"medsynth_lib.course.{arguments.module}"
    module = importlib.import_module(module)  # this one alone: sweep takes seconds to import
    return module.main(arguments)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
