"""Named numbers of one notebook run: read by its last table, the report and the regression test."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsynth_lib.files import DataError, atomic
from medsynth_lib.settings import REPO

if TYPE_CHECKING:  # both take seconds to import, and the command line does without
    import pandas as pd
    from matplotlib.figure import Figure


class Results:
    """Results of one run, written to results.json after every record; a new object starts an empty file."""

    def __init__(self, path: str | Path, notebook: str = "", profile: str = "", seed: int = 0) -> None:
        self.path = Path(path)
        self._rows: list[dict[str, Any]] = []
        self._data = {"notebook": notebook, "profile": profile, "seed": seed, "caption": "", "results": self._rows}
        (self.path.parent / "main.png").unlink(missing_ok=True)  # an older run's figure would pass for this one's
        self._write()

    def record(self, name: str, value: Any, unit: str = "", paper: Any = None, note: str = "") -> None:
        """Store one named result; recording a name again replaces it.

        Args:
            name: such as "target/psnr/svae".
            value: a finite number (also of NumPy or torch), a bool, or the text "not run".
            unit: such as "dB".
            paper: the paper's own number, or None.
            note: one line.

        Raises: ValueError where a number is not finite or a value is of another kind.
        """
        row = {"name": name, "value": _plain(name, value), "unit": unit, "paper": _plain(name, paper), "note": note}
        if row["value"] is None or (isinstance(row["value"], str) and row["value"] != "not run"):
            raise ValueError(f'Result {name!r} is {value!r}; record a number, a bool or the text "not run".')
        place = next((i for i, old in enumerate(self._rows) if old["name"] == name), len(self._rows))
        self._rows[place : place + 1] = [row]
        self._write()

    def record_measured(
        self, name: str, value: Any, unit: str = "", paper: float | None = None, note: str = ""
    ) -> None:
        """Store a measured number, or "not run" where it could not be measured.

        The note then says so.

        Args:
            name: such as "ct/monotonicity/lung".
            value: a number; not finite where nothing could be measured.
            unit: such as "SD/SD".
            paper: the paper's own number, or None.
            note: one line.
        """
        value = float(value)
        known = math.isfinite(value)
        self.record(name, value if known else "not run", unit, paper, note if known else f"run, not measurable: {note}")

    def figure(self, fig: "Figure", caption: str) -> None:
        """Save a matplotlib figure as main.png, the picture of this notebook in the report."""
        with atomic(self.path.parent / "main.png") as temporary:
            fig.savefig(temporary, dpi=90, bbox_inches="tight")
        self._data["caption"] = caption
        self._write()

    def table(self) -> "pd.DataFrame":
        """Make the table that ends a notebook: what was measured here beside the paper's number."""
        import pandas as pd

        pd.set_option("display.max_rows", 200)  # the last table is for looking things up
        rows = {row["name"]: [show(row["value"]), row["unit"], show(row["paper"]), row["note"]] for row in self._rows}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["measured here", "unit", "paper", "note"])

    def _write(self) -> None:
        with atomic(self.path) as temporary:
            temporary.write_text(json.dumps(self._data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def show(value: Any) -> str:
    """Write a result as short text: four significant digits, and a dash for None."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_json(path: str | Path, *names: str) -> dict[str, Any]:
    """Read a JSON file of a run.

    Args:
        path: the file.
        names: what it must hold.

    Raises: DataError for a file that is not of a run.
    """
    try:
        data = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); run the notebook again.") from error
    missing = [name for name in names if not isinstance(data, dict) or name not in data]
    if missing:
        raise DataError(f"{path}: holds no {', '.join(missing)}, so no run wrote it; give the folder of a run.")
    return data


def compare(results_json: str | Path, reference_json: str | Path) -> list[str]:
    """Hold a results.json against reference values.

    Args:
        results_json: file of one notebook's run.
        reference_json: file of {name: {"value": ..., "tolerance": ..., "reason": ...}}; the tolerance is absolute, in the
            value's unit.

    Returns: one sentence for each result that is missing or out of tolerance.
    """
    results = {row["name"]: row["value"] for row in read_json(results_json, "results")["results"]}
    references = read_json(reference_json)
    return [text for name, reference in references.items() for text in _violation(name, results, reference)]


def _violation(name: str, results: dict, reference: dict) -> list[str]:
    """At most one sentence: what is wrong with one result."""
    value, expected, tolerance = results.get(name), reference["value"], reference.get("tolerance", 0)
    reason = reference.get("reason", "")
    if name not in results:
        return [f"{name} is missing; expected {expected}."]
    if isinstance(expected, bool | str) or isinstance(value, str):
        return [] if value == expected else [f"{name} is {value!r}; expected {expected!r} ({reason})."]
    if abs(value - expected) > tolerance:
        return [f"{name} is {show(value)}; expected {show(expected)} ± {show(tolerance)} ({reason})."]
    return []


def compare_run(out: str | Path) -> int:
    """Hold the results of a run against tests/reference/NN-PROFILE.json.

    What differs is printed.

    Returns: the exit status: 0, 1 where a result is missing or out of tolerance, 2 where there is nothing to compare.
    """
    found = sorted(Path(out).glob("[0-9][0-9]/results.json"))
    if not found:
        print(f"{out}: no NN/results.json in it; run the notebooks first.")
        return 2
    violations = []
    for path in found:
        number, profile = path.parent.name, read_json(path, "profile")["profile"]
        reference = REPO / "tests" / "reference" / f"{number}-{profile}.json"
        if reference.is_file():
            violations += [f"{number}: {each}" for each in compare(path, reference)]
            print(f"{number}: compared with {reference.relative_to(REPO)}")
    print(*violations, sep="\n", end="\n" if violations else "")
    return int(bool(violations))


def _plain(name: str, value: Any) -> bool | int | float | str | None:
    """A NumPy or torch scalar as a Python number; not finite is an error."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"Result {name!r} is {value}; find what made it so, do not record it.")
    if not isinstance(value, bool | int | float | str | None):
        raise ValueError(f"Result {name!r} is a {type(value).__name__}; record a number.")
    return value
