"""python -m data_download: list, matrix, describe, get, verify, lookalike."""

import argparse
import sys
from pathlib import Path

from data_download import registry
from medsynth_lib.files import DataError, print_anywhere, provide_home


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line; None takes those of the process.

    Returns:
        0 where it worked, 1 for an error or an unusable folder, 2 for a data set that needs your registration.
    """
    print_anywhere()
    args = parser().parse_args(arguments)
    try:
        if args.command in ("get", "verify", "lookalike"):
            provide_home()
        return COMMANDS[args.command](args)
    except DataError as error:
        print(error, file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m data_download", description="Public data sets for the lessons.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all data sets, one a line")
    commands.add_parser("matrix", help="which lesson uses which data set for what")
    for command, text in dict(
        describe="licence, size, layout, how to get it",
        get="download, or print the steps",
        verify="is a folder complete? with the name own: can the lessons use your data?",
        lookalike="write a small simulated folder that looks like the data set",
    ).items():
        sub = commands.add_parser(command, help=text)
        sub.add_argument("name", type=str.lower)  # publishers write IXI, BraTS2019
        if command in ("verify", "lookalike"):
            sub.add_argument("folder", type=Path)
        if command == "get":
            sub.add_argument("--folder", type=Path, help="where to; default: the cache")
            sub.add_argument("--accept-license", action="store_true", help="you have read the licence and accept it")
    return parser


def list_sets(args: argparse.Namespace) -> int:
    """Print all data sets, one a line."""
    for name, entry in registry.load().items():
        print(f"{name:12} {entry['size_gb']:>6} GB  {entry['how']:12}  {entry['title']}")
    return 0


def show_matrix(args: argparse.Namespace) -> int:
    """Print which lesson uses which data set for what."""
    for name, row in registry.matrix().iterrows():
        print(name)
        for lessons, cell in row.items():
            print(f"  {lessons:18} {cell}")
    return 0


def describe(args: argparse.Namespace) -> int:
    """Print what is known of a data set."""
    entry = registry.entry(args.name)
    for key in ("title", "version", "licence", "licence_link", "citation", "size_gb", "layout", "sites", "preparation"):
        print(f"{key:13} {entry[key]}")
    for file in entry.get("files", []):
        print(f"{'file':13} {file['url']}" + (f", md5 {file['md5']} ({file['hash_source']})" if "md5" in file else ""))
    for i, step in enumerate(entry.get("steps", []), 1):
        print(f"{'step ' + str(i):13} {step}")
    print(
        f"{'lessons':13} "
        + "; ".join(f"{lessons}: {cell}" for lessons, cell in registry.matrix().loc[args.name].items())
    )
    return 0


def get(args: argparse.Namespace) -> int:
    """Download a data set, or print the steps of its registration."""
    from data_download import download

    entry = registry.entry(args.name)
    if entry["how"] == "registration":
        print(f"{args.name} is given out by its publisher alone ({entry['licence']}):\n{download.steps(entry)}")
        return 2
    print(f"{entry['title']}; licence {entry['licence']}, {entry['licence_link']}; cite {entry['citation']}")
    folder = download.get(args.name, args.folder, args.accept_license)
    print(f"complete: {folder}; next: python -m data_download verify {args.name} {folder}")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Print the report on a folder."""
    from data_download.verify import verify

    report = verify(args.name, args.folder)
    print("\n".join(report.lines()))
    return 0 if report.usable else 1


def lookalike(args: argparse.Namespace) -> int:
    """Write a look-alike of a data set."""
    from data_download.lookalike import WRITERS, write

    if args.name not in WRITERS:
        raise DataError(f"{args.name}: no such data set; there are {', '.join(WRITERS)}.")
    print(f"simulated look-alike of {args.name}: {write(args.name, args.folder)}")
    return 0


COMMANDS = dict(list=list_sets, matrix=show_matrix, describe=describe, get=get, verify=verify, lookalike=lookalike)

if __name__ == "__main__":
    sys.exit(main())
