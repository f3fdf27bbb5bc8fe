"""The three descriptions of the environment agree."""

import re
import tomllib
from pathlib import Path

import yaml

REPO = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
NEEDED = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]


def test_conda_lists_what_pyproject_needs():
    conda = yaml.safe_load((REPO / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    assert sorted(pip) == sorted(NEEDED + ["-e ."])
    assert conda["channels"] == ["conda-forge"]


def test_one_python_is_asked_for():
    """3.11.4 is the first with the filter of tarfile that keeps archives inside their folder."""
    (conda,) = re.findall(r'- "python>=([\d.]+),', (REPO / "environment.yml").read_text())
    makefile = (REPO / "Makefile").read_text()
    (made,) = re.findall(r"version_info < \(([\d, ]+)\)", makefile)
    (said,) = re.findall(r"older than Python ([\d.]+);", makefile)
    (read,) = re.findall(r"Python ≥ ([\d.]+) ", (REPO / "README.md").read_text())
    assert {PROJECT["requires-python"], *(f">={v}" for v in (conda, made.replace(", ", "."), said, read))} == {">=3.11.4"}


def test_constraints_pin_every_needed_package():
    lines = [line for line in (REPO / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line) for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert {re.match(r"[a-z0-9-]+", need.lower())[0] for need in NEEDED} <= pinned


def test_constraints_hold_no_local_builds():
    text = (REPO / "constraints.txt").read_text()
    assert "+" not in text and "file:" not in text and "torch==2.13.0" in text


def test_no_number_is_still_to_be_filled_in():
    """While a page is written, a number that is not measured yet stands as @X@; readers must never see one."""
    pages = [*REPO.glob("*.md"), *REPO.glob("data_download/*.md"), *REPO.glob("notebooks/*.ipynb")]
    left = {path.name: re.findall(r"@[A-Z]+\d*@", path.read_text(encoding="utf-8")) for path in pages}
    assert not {name: found for name, found in left.items() if found}
