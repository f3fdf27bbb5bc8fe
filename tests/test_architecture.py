"""The library's rooms and the arrows between them: what may import what.

`python tests/test_architecture.py` prints the report of rooms that stands in CONTRIBUTING.md; with `--write` it puts it there.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
LIBRARY = "medsynth_lib"
CONTRIBUTING = REPO / "CONTRIBUTING.md"
MARKERS = "<!-- rooms -->", "<!-- end of rooms -->"

BASE = {"files", "processes", "settings"}
DATA = {"data.files", "data.simulation", "data.preparation"}
TRAINING = BASE | DATA | {"models", "training"}
STUDIES = TRAINING | {"evaluation", "profiling"}

# A room, and the rooms that it may import. CONTRIBUTING.md draws the same arrows.
DRAWN: dict[str, set[str]] = {
    "files": set(),
    "processes": {"files"},
    "settings": {"files"},
    "data.files": BASE,
    "data.simulation": BASE | {"data.files"},
    "data.preparation": BASE | {"data.files", "data.simulation"},
    "models": BASE,
    "training": TRAINING - {"training"},
    "evaluation": TRAINING,
    "profiling": TRAINING,
    "experiments": STUDIES,
    "display": BASE | DATA,
    "course": BASE,
    "cli": STUDIES | {"experiments", "display", "course"},
}

Arrow = tuple[str, str]  # importing module, imported module


# -- reading imports --------------------------------------------------------------------------------------------------------


def modules_of(root: Path) -> dict[str, Path]:
    """Find the library's modules: dotted name -> file. A package has the name of its folder."""
    found = {}
    for path in sorted((root / LIBRARY).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, module: str, known: Iterable[str]) -> set[str]:
    """List what a file imports: full dotted names, as deep as `known` modules go.

    Imports inside functions, relative ones and import_module("literal") count. Of a `__main__` block, one import does not:
    that of the command line.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    allowed = {id(node) for block in main_blocks(tree) for node in ast.walk(block)}
    found = set()
    for node in ast.walk(tree):
        names = {deepest(name, known) for name in imported_names(node, package)}
        found |= names - {f"{LIBRARY}.cli"} if id(node) in allowed else names
    return found


def imported_names(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the full dotted names that one statement or call imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        origin = absolute("." * node.level + (node.module or ""), package)
        yield from (f"{origin}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__") and node.args:
        if isinstance(node.args[0], ast.Constant):
            yield absolute(str(node.args[0].value), package)


def called(node: ast.Call) -> str:
    """The last part of the name of a called function."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def absolute(name: str, package: str) -> str:
    """The full name of a relative one: one dot is the package, each further dot the one around it."""
    dots = len(name) - len(name.lstrip("."))
    around = package.split(".")[: len(package.split(".")) - dots + 1] if dots else []
    return ".".join([*around, *filter(None, [name.lstrip(".")])])


def deepest(name: str, known: Iterable[str]) -> str:
    """The module that a name is, or that it is defined in; names outside the library stay whole."""
    while name not in known and name.startswith(LIBRARY + "."):
        name = name.rpartition(".")[0]
    return name


def main_blocks(tree: ast.Module) -> list[ast.If]:
    """The blocks `if __name__ == "__main__":` of a file."""
    tests = ('__name__ == "__main__"', "__name__ == '__main__'")
    return [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) in tests]


def arrows(root: Path = REPO) -> set[Arrow]:
    """All imports of the library's files: (importing module, imported module), also of what lies outside."""
    modules = modules_of(root)
    return {(module, target) for module, path in modules.items() for target in imports(path, module, modules)}


def inside(found: Iterable[Arrow]) -> set[Arrow]:
    """Those arrows that stay in the library."""
    return {(a, b) for a, b in found if f"{b}.".startswith(LIBRARY + ".")}


# -- rules ------------------------------------------------------------------------------------------------------------------


def room(module: str) -> str:
    """The room of a module: the first folder or file below the library, in `data` the second."""
    parts = module.split(".")[1:]
    return ".".join(parts[: 2 if parts[:1] == ["data"] else 1])


def wrong_arrows(found: Iterable[Arrow]) -> list[str]:
    """Sentences about imports that are not drawn."""
    sentences = []
    for a, b in sorted(inside(found)):
        if room(a) not in DRAWN:
            sentences.append(f"{a} stands in no room; put it into one of {', '.join(DRAWN)}.")
        elif room(a) != room(b) and room(b) not in DRAWN[room(a)]:
            sentences.append(f"{a} imports {b}: no arrow leads from {room(a)} to {room(b) or LIBRARY}.")
    return sentences


def circle(found: Iterable[Arrow]) -> list[str]:
    """Names along a circle of arrows, the first one again at the end; [] where there is none."""
    follow: dict[str, list[str]] = {}
    for a, b in sorted(found):
        follow.setdefault(a, []).append(b)
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for following in follow.get(name, []):
            if around := visit(following, [*trail, name]):
                return around
        done.add(name)
        return []

    return next(filter(None, (visit(name, []) for name in follow)), [])


def between_packages(found: Iterable[Arrow], root: Path = REPO) -> set[Arrow]:
    """Arrows between folders. A folder inside another one belongs to it: arrows between these two do not count."""
    modules = modules_of(root)

    def folder(module: str) -> str:
        return module if modules[module].name == "__init__.py" else module.rpartition(".")[0]

    pairs = {(folder(a), folder(b)) for a, b in inside(found)} - {(name, name) for name in modules}
    return {(a, b) for a, b in pairs if not f"{a}.".startswith(f"{b}.") and not f"{b}.".startswith(f"{a}.")}


def downloads(found: Iterable[Arrow]) -> list[str]:
    """Sentences about imports of data_download, which hands its registry in and is asked for nothing."""
    return [f"{a} imports {b}: nothing may." for a, b in sorted(found) if b.split(".")[0] == "data_download"]


# -- the report -------------------------------------------------------------------------------------------------------------


def report(root: Path = REPO) -> str:
    """A Markdown table of the rooms: files, lines, and the rooms that each one imports."""
    modules, found = modules_of(root), inside(arrows(root))
    lines = ["| room | files | lines | imports |", "| --- | ---: | ---: | --- |"]
    for name in DRAWN:
        paths = [path for module, path in modules.items() if room(module) == name]
        length = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
        reached = {room(b) for a, b in found if room(a) == name and room(b) != name}
        lines.append(f"| `{name}` | {len(paths)} | {length:,} | {', '.join(r for r in DRAWN if r in reached) or '-'} |")
    return "\n".join(lines)


def without_counts(table: str) -> list[tuple[str, str]]:
    """The rooms of a report and their arrows, without counts of files and lines."""
    return re.findall(r"^\| `([\w.]+)` \|[^|]*\|[^|]*\| (.*) \|$", table, re.MULTILINE)


def written_report() -> str:
    """What stands between the markers in CONTRIBUTING.md."""
    before, after = MARKERS
    return CONTRIBUTING.read_text(encoding="utf-8").partition(before)[2].partition(after)[0]


def write_report() -> None:
    """Put today's report between the markers in CONTRIBUTING.md."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    start, end = text.index(MARKERS[0]) + len(MARKERS[0]), text.index(MARKERS[1])
    CONTRIBUTING.write_text(f"{text[:start]}\n{report()}\n{text[end:]}", encoding="utf-8")


# -- tests ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> set[Arrow]:
    return arrows()


def test_only_drawn_arrows(found):
    assert wrong_arrows(found) == []


def test_no_circle_of_files(found):
    assert circle(inside(found)) == []


def test_no_circle_of_packages(found):
    assert circle(between_packages(found)) == []


def test_nothing_imports_data_download(found):
    assert downloads(found) == []


def test_rooms_are_drawn_without_a_circle():
    assert circle((a, b) for a, many in DRAWN.items() for b in many) == []
    assert {room(module) for module in modules_of(REPO)} <= {*DRAWN, "", "data"}


def test_contributing_shows_the_arrows_of_today():
    assert without_counts(written_report()) == without_counts(report()), (
        "run: python tests/test_architecture.py --write"
    )


PLANTED = {
    "at the top": "import medsynth_lib.training.loop",
    "of a name": "from medsynth_lib.training.loop import fit",
    "of a module": "from medsynth_lib.training import loop",
    "inside a function": "def f():\n    from medsynth_lib.training.loop import fit",
    "relative": "from ..training import loop",
    "by importlib": "import importlib\nimportlib.import_module('medsynth_lib.training.loop')",
    "by importlib, relative": "from importlib import import_module\nimport_module('..training.loop', __package__)",
    "for types only": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from medsynth_lib.training.loop import fit",
    "in a main block": "if __name__ == '__main__':\n    from medsynth_lib.training.loop import fit",
}


def plant(root: Path, files: dict[str, str]) -> set[Arrow]:
    """Write a small library and read its arrows."""
    for name, text in files.items():
        path = root / LIBRARY / name
        for folder in [path.parent, *path.parent.parents]:
            if folder == root:
                break
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").touch()
        path.write_text(text + "\n", encoding="utf-8")
    return arrows(root)


@pytest.mark.parametrize("source", PLANTED.values(), ids=PLANTED)
def test_a_planted_arrow_is_found(tmp_path, source):
    planted = plant(tmp_path, {"models/net.py": source, "training/loop.py": "fit = None"})
    assert wrong_arrows(planted) == [
        "medsynth_lib.models.net imports medsynth_lib.training.loop: no arrow leads from models to training."
    ]


def test_a_main_block_may_call_the_command_line(tmp_path):
    call = "from medsynth_lib.cli import main"
    allowed = plant(
        tmp_path / "a", {"models/net.py": f"if __name__ == '__main__':\n    {call}", "cli.py": "main = None"}
    )
    assert wrong_arrows(allowed) == []
    assert wrong_arrows(plant(tmp_path / "b", {"models/net.py": call, "cli.py": "main = None"}))


def test_planted_circles_are_found(tmp_path):
    planted = plant(tmp_path / "files", {
        "models/a.py": "from medsynth_lib.models import b", "models/b.py": "def f():\n    from medsynth_lib.models.a import x"
    })  # fmt: skip
    assert circle(inside(planted)) == ["medsynth_lib.models.a", "medsynth_lib.models.b", "medsynth_lib.models.a"]
    planted = plant(tmp_path / "packages", {
        "experiments/one/a.py": "from ..two import b", "experiments/one/c.py": "", "experiments/two/b.py": "",
        "experiments/two/d.py": "from ..one import c",
    })  # fmt: skip
    assert circle(inside(planted)) == []
    assert len(circle(between_packages(planted, tmp_path / "packages"))) == 3


def test_a_planted_download_and_a_file_without_a_room_are_found(tmp_path):
    planted = plant(tmp_path, {"data/files/x.py": "from data_download import registry", "helpers.py": "import medsynth_lib.files",
                               "files.py": ""})  # fmt: skip
    assert downloads(planted) == ["medsynth_lib.data.files.x imports data_download.registry: nothing may."]
    assert len(wrong_arrows(planted)) == 1 and "helpers stands in no room" in wrong_arrows(planted)[0]


if __name__ == "__main__":
    write_report() if "--write" in sys.argv else print(report())
