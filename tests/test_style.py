"""How functions look: at most one screen, typed, with a docstring whose first line fits."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
LIBRARY = sorted((REPO / "medsynth_lib").rglob("*.py"))
SCREEN = 50  # lines of a function, with its docstring
FIRST_LINE = 90  # characters


def functions(path):
    """Every function of a file as (name, node, public); a public one and all around it lack a leading underscore."""

    def walk(node, prefix, public):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = public and (not child.name.startswith("_") or child.name == "__init__")
                name = f"{prefix}{child.name}"
                if isinstance(child, ast.FunctionDef):
                    yield name, child, inner
                    yield from walk(child, f"{name}.", False)  # what is inside a function is nobody else's
                else:
                    yield from walk(child, f"{name}.", inner)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "", True)


def untyped(node):
    """Arguments without a type, and "return" where that is missing."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    names = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
    return names + (["return"] if node.returns is None and node.name != "__init__" else [])


def faults(path):
    """What is wrong with a file's functions, one line each."""
    found = []
    for name, node, public in functions(path):
        lines = node.end_lineno - node.lineno + 1
        if lines > SCREEN:
            found.append(f"{name}: {lines} lines; at most {SCREEN}")
        doc = (ast.get_docstring(node) or "").splitlines()
        if doc and len(doc[0]) > FIRST_LINE:
            found.append(f"{name}: first line of {len(doc[0])} characters; at most {FIRST_LINE}")
        if public and untyped(node):
            found.append(f"{name}: without a type: {', '.join(untyped(node))}")
        if public and not doc and not name.endswith("__init__") and "." not in name:
            found.append(f"{name}: no docstring")
    return found


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(REPO)))
def test_functions_of_the_library(path):
    assert faults(path) == []


def test_a_fault_is_found(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text("def long(x):\n" + "    x += 1\n" * SCREEN + "\n\nclass A:\n    def b(self, y): ...\n")
    assert [fault.split(":")[0] for fault in faults(path)] == ["long", "long", "long", "A.b"]
