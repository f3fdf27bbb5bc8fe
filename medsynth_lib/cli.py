"""The command line, `medsynth`: one entry point to the course, the sweeps and the tools.

Each command imports its module when it runs: `medsynth --help` answers at once.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from medsynth_lib.files import DataError, print_anywhere, provide_home

OVERVIEW = """Learn 3D medical image synthesis by running two papers: a slice-VAE domain adaptation of a 3D pix2pix, and HA-GAN.

Start with:  medsynth run --profile quick
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words after the program's name; None: those that the program was started with.

    Returns: the exit status: 0 where all went well, 2 for a request that makes no sense, 130 after Ctrl-C.
    """
    print_anywhere()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in HANDED_OVER:
        return HANDED_OVER[words[0]](words[1:])
    options = make_parser().parse_args(words)
    try:
        provide_home()
        return options.call(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser("medsynth", description=OVERVIEW, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def command(
        name: str, call: Callable[[argparse.Namespace], int], sentence: str, example: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=sentence,
            description=f"{sentence}.",
            epilog=f"example:\n  medsynth {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(call=call)
        return added

    add_course(command)
    add_studies(command)
    for name, sentence in {
        "memory": "Say what a training step holds in GPU memory, and which setting fits which card",
        "data": "List public data sets, get them, and check a folder of your own",
    }.items():
        commands.add_parser(name, help=sentence, add_help=False)  # for the overview: `main` hands these two over
    return parser


# -- notebooks --------------------------------------------------------------------------------------------------------------


def add_course(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands about notebooks."""
    add = command(
        "run", run, "Execute the notebooks and write an HTML report of them", "run --profile lesson --only 02,05"
    )
    profile = os.environ.get("MEDSYNTH_PROFILE") or "quick"
    add.add_argument("--profile", default=profile, help="quick, lesson, gpu or paper: the size (default: %(default)s)")
    add.add_argument(
        "--only", default="", metavar="NN,NN", help="numbers of the notebooks, such as 01,02 (default: all)"
    )
    add.add_argument("--out", metavar="DIR", help="folder of notebooks, results and report (default: build/PROFILE)")
    add.add_argument("--jobs", type=positive, default=1, metavar="N", help="notebooks at a time (default: %(default)s)")
    add.add_argument("--data-dir", metavar="DIR", help="folder of real data (default: simulated subjects)")
    add.add_argument("--notebooks", metavar="DIR", help="folder of NN_*.ipynb and profiles/ (default: the course's)")
    add.add_argument(
        "--cell-timeout",
        type=positive,
        default=3600,
        metavar="S",
        help="seconds a cell may take (default: %(default)s)",
    )

    add = command("student", student, "Copy the notebooks without solutions and outputs", "student --out build/student")
    add.add_argument("--out", default=str(Path("build", "student")), metavar="DIR", help="default: %(default)s")
    add.add_argument("--notebooks", metavar="DIR", help="folder of NN_*.ipynb (default: the course's)")

    add = command("compare", compare, "Hold a run's results against the reference values", "compare build/quick")
    add.add_argument("out", metavar="DIR", help="folder of a run, which holds NN/results.json")

    add = command("report", report, "Write the HTML report of an earlier run again", "report build/quick")
    add.add_argument("out", metavar="DIR", help="folder of a run, which holds summary.json")

    add = command(
        "outputs", outputs, "Write a run's outputs into the notebooks, to be committed", "outputs build/lesson"
    )
    add.add_argument("out", metavar="DIR", help="folder of a run, which holds executed notebooks")


def run(options: argparse.Namespace) -> int:
    """Execute notebooks."""
    from medsynth_lib.course.run import run_notebooks

    return run_notebooks(
        options.profile,
        options.only,
        options.out,
        options.jobs,
        options.data_dir,
        options.notebooks,
        options.cell_timeout,
    )


def student(options: argparse.Namespace) -> int:
    """Copy the notebooks without solutions."""
    from medsynth_lib.course.student import student_copies

    return student_copies(options.out, options.notebooks)


def compare(options: argparse.Namespace) -> int:
    """Hold a run against the reference values."""
    from medsynth_lib.course.results import compare_run

    return compare_run(options.out)


def report(options: argparse.Namespace) -> int:
    """Write a report again."""
    from medsynth_lib.course.report import report_again

    return report_again(options.out)


def outputs(options: argparse.Namespace) -> int:
    """Write a run's outputs into the notebooks."""
    from medsynth_lib.course.committed_outputs import commit_run

    return commit_run(options.out)


# -- studies ----------------------------------------------------------------------------------------------------------------


def add_studies(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands about studies: sweeps, and the adaptation to one's own volumes."""
    add = command(
        "sweep",
        sweep,
        "Run a study that is too long for a notebook, cell by cell; what is finished is not run again",
        "sweep adaptation --only 'no adaptation' --jobs 2",
    )
    add.add_argument(
        "study",
        choices=STUDIES,
        help="adaptation: lesson 04's comparison; slice-vae: lesson 03's trainings; rivals: HA-GAN beside other GANs; "
        "detection: which score notices which defect",
    )
    add.add_argument("--profile", default="lesson", help="size of the study (default: %(default)s)")
    add.add_argument(
        "--only", default="", metavar="TEXT;TEXT", help="cells whose names hold one of these (default: all)"
    )
    add.add_argument(
        "--part", default="1/1", metavar="I/N", help="the I-th of N shares, for several machines (default: 1/1)"
    )
    add.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="processes of one thread each (default: %(default)s)"
    )

    add = command(
        "adapt",
        adapt,
        "Adapt a trained synthesiser to a folder of your own volumes and write a T1 for each",
        "adapt --model notebooks/pretrained/pix2pix-SIMA-... --target scans --out t1 --scanners notebooks/scanners.yaml",
    )
    add.add_argument("--model", required=True, metavar="DIR", help="a trained pix2pix, as in notebooks/pretrained")
    add.add_argument("--target", required=True, metavar="DIR", help="unlabelled, skull-stripped target volumes")
    add.add_argument("--out", required=True, metavar="DIR", help="receives the synthetic T1 volumes")
    add.add_argument("--source", metavar="DIR", help="the model's training pairs (default: lesson 04's simulated ones)")
    add.add_argument(
        "--scanners", metavar="FILE", help="YAML of both scanners' sequences: T1 in the target's look (default: none)"
    )
    add.add_argument(
        "--svae", metavar="DIR", help="a trained slice-VAE, which adds the paper's latent prior (default: none)"
    )
    add.add_argument("--profile", default="lesson", help="steps and rates of lesson 04 (default: %(default)s)")
    add.add_argument("--seeds", type=positive, default=3, metavar="N", help="adaptations in the ensemble (default: 3)")


STUDIES = ("adaptation", "slice-vae", "rivals", "detection")


def sweep(options: argparse.Namespace) -> int:
    """Run what is missing of a study; what makes no sense is said in one line."""
    from medsynth_lib.experiments.sweep import run_sweep

    try:
        return run_sweep(options.study, options.profile, options.only, options.part, options.jobs)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def adapt(options: argparse.Namespace) -> int:
    """Adapt a model to one's own volumes; what does not fit is said in one line."""
    from medsynth_lib.experiments.adaptation.own_volumes import adapt_folder
    from medsynth_lib.files import DataError
    from medsynth_lib.settings import load_settings

    asked = {name: value for name, value in vars(options).items() if name not in ("command", "call", "profile")}
    try:
        table = adapt_folder(settings=load_settings("04", options.profile), **asked)
        print(table.round(2).to_string(index=False))
    except (DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


# -- commands with a command line of their own ------------------------------------------------------------------------------


def memory(arguments: list[str]) -> int:
    """Account for the memory of a training step."""
    from medsynth_lib.profiling.memory import main

    return main(arguments)


def data(arguments: list[str]) -> int:
    """Run the downloader, as a program of its own."""
    # data_download imports the library. Nothing of the library imports data_download, so that no circle can grow.
    return subprocess.run([sys.executable, "-m", "data_download", *arguments], check=False).returncode


HANDED_OVER = {"memory": memory, "data": data}


def positive(text: str) -> int:
    """Read a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
