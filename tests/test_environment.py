"""The three descriptions of the environment agree."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]


def test_conda_lists_what_pyproject_needs():
    conda = yaml.safe_load((REPO / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = [entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict)]
    assert sorted(pip) == sorted(NEEDED + ["-e ."])
    assert conda["channels"] == ["conda-forge"]


def test_one_python_is_asked_for():
    """3.11.4 is the first with the filter of tarfile that keeps archives inside their folder."""
    (conda,) = re.findall(r'- "python>=([\d.]+),', (REPO / "environment.yml").read_text(encoding="utf-8"))
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    (made,) = re.findall(r"version_info < \(([\d, ]+)\)", makefile)
    (said,) = re.findall(r"older than Python ([\d.]+);", makefile)
    (read,) = re.findall(r"Python ≥ ([\d.]+) ", (REPO / "README.md").read_text(encoding="utf-8"))
    assert {PROJECT["requires-python"], *(f">={v}" for v in (conda, made.replace(", ", "."), said, read))} == {
        ">=3.11.4"
    }


def pinned(name):
    """Name -> version of a file of `package==version` lines; hashes and comments are passed over."""
    found = re.findall(
        r"^([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)(?: \\)?$", (REPO / name).read_text(encoding="utf-8"), re.MULTILINE
    )
    return {canonicalize_name(package): version for package, version in found}


def all_needed(needs):
    """Names of all installed packages that these requirements lead to, here."""
    names, waiting = set(), [Requirement(need) for need in needs]
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if name in names or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        try:
            waiting += [Requirement(each) for each in requires(name) or []]
        except PackageNotFoundError:  # of an extra that nothing asks for
            continue
        names.add(name)
    return names


def test_constraints_pin_every_needed_package():
    lines = [
        line for line in (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert len(pinned("constraints.txt")) == len(lines)
    missing = all_needed(NEEDED) - set(pinned("constraints.txt"))
    assert not {
        name for name in missing if not name.startswith(("nvidia-", "cuda-", "triton"))
    }  # of torch's GPU builds


def test_the_lock_has_hashes_of_all_but_torch():
    text = (REPO / "requirements.lock").read_text(encoding="utf-8")
    versions = pinned("constraints.txt")
    del versions["torch"]
    assert pinned("requirements.lock") == versions
    assert not re.search(r"^\S+==\S+$", text, re.MULTILINE), "a package without a hash"
    assert set(re.findall(r"--hash=(\w+):", text)) == {"sha256"} and "://" not in text


def test_withdrawn_and_unfit_versions_are_excluded():
    needs = {canonicalize_name(Requirement(need).name): Requirement(need).specifier for need in NEEDED}
    assert not any(needs["lightning-fabric"].contains(version) for version in ("2.6.2", "2.6.3"))
    assert not needs["scipy"].contains("1.18.0") and needs["scipy"].contains("1.17.1")


def test_constraints_hold_no_local_builds():
    text = (REPO / "constraints.txt").read_text(encoding="utf-8")
    assert "+" not in text and "file:" not in text and "torch==2.13.0" in text


def test_no_number_is_still_to_be_filled_in():
    """While a page is written, a number that is not measured yet stands as @X@; readers must never see one."""
    pages = [*REPO.glob("*.md"), *REPO.glob("data_download/*.md"), *REPO.glob("notebooks/*.ipynb")]
    left = {path.name: re.findall(r"@[A-Z]+\d*@", path.read_text(encoding="utf-8")) for path in pages}
    assert not {name: found for name, found in left.items() if found}


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] and len(citation["references"]) == 2
    assert f"## {PROJECT['version']}" in (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
