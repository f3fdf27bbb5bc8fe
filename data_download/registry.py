"""What is known of each public data set: registry.yaml, and the library's table of which lesson can use it for what."""

from functools import cache
from pathlib import Path

import pandas as pd
import yaml

from medsynth_lib.data.files.published import ROLES, ROLES_OF, Pairs, Refused, Volumes
from medsynth_lib.files import DataError

PATH = Path(__file__).parent / "registry.yaml"
REQUIRED = {"title", "version", "licence", "licence_link", "citation", "size_gb", "how", "layout", "sites"}
REQUIRED |= {"preparation"}
OPTIONAL = {"subjects", "unpacked_gb", "files", "steps"}
FILE_KEYS = {"url", "name", "into", "bytes", "md5", "hash_source"}
HOW = ("direct", "client", "registration")
NO_ROLE = {  # why a lesson takes nothing from any data set
    "04": "– simulated only: it compares on subjects scanned at both sites",
    "08": "– no data: it accounts for the memory of training steps",
}


@cache
def load(path: Path = PATH) -> dict[str, dict]:
    """Read all entries, name -> dictionary, checked.

    Raises:
        DataError: naming entry and key.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: no readable registry ({str(error).splitlines()[0]}); restore the file.") from error
    if not isinstance(entries, dict):
        raise DataError(f"{path}: is not a list of data sets by name; restore the file.")
    for name, entry in entries.items():
        check(path, name, entry)
    return entries


def check(path: Path, name: str, entry: dict) -> None:
    """Raise DataError unless an entry has what every entry must have, and nothing unknown."""

    def wrong(what: str) -> DataError:
        return DataError(f"{path}: {name}: {what}; compare with the other entries.")

    if not isinstance(entry, dict):
        raise wrong("is not a set of keys")
    if missing := REQUIRED - set(entry):
        raise wrong(f"lacks {', '.join(sorted(missing))}")
    if unknown := set(map(str, entry)) - REQUIRED - OPTIONAL:
        raise wrong(f"has unknown keys {', '.join(sorted(unknown))}")
    if entry["how"] not in HOW:
        raise wrong(f"how: {entry['how']!r} is not one of {HOW}")
    needed = ("files", "unpacked_gb") if entry["how"] == "direct" else ("steps",)
    if any(key not in entry for key in needed):
        raise wrong(f"how: {entry['how']} needs {' and '.join(needed)}")
    for file in entry.get("files", []):
        if not isinstance(file, dict) or not {"url", "name"} <= set(file) <= FILE_KEYS:
            raise wrong(f"a file has keys other than {sorted(FILE_KEYS)}, or lacks url or name")
        if "md5" in file and "hash_source" not in file:
            raise wrong(f"{file['name']} has a hash, but not who publishes it (hash_source)")
    if name not in ROLES:
        raise wrong("is not in the table ROLES of medsynth_lib/data/files/published.py")


def entry(name: str) -> dict:
    """Return one entry.

    Raises:
        DataError: for an unknown name.
    """
    if name not in load():
        raise DataError(f"{name}: no such data set; there are {', '.join(load())}.")
    return load()[name]


def use(name: str, lesson: str) -> str:
    """Say what a lesson takes from a data set: "FLAIR + T2 → T1", "T1 brain", or "– reason"."""
    if not ROLES_OF[lesson]:
        return NO_ROLE[lesson]
    cells = []
    for role in ROLES_OF[lesson]:
        match ROLES[name][role]:
            case Refused(reason):
                cells.append(f"– {reason}")
            case Pairs(inputs, target, shift):
                cells.append(f"{' + '.join(map(str.upper, inputs))} → {target.upper()}; shift: {shift}")
            case Volumes(modality, kind, note):
                cells.append(f"{modality.upper()} {kind}, {note}")
    usable = [cell for cell in cells if not cell.startswith("–")]
    return " | ".join(usable or cells)


def matrix() -> pd.DataFrame:
    """Make the table data set x lesson: what each uses as input and target, or why not."""
    # lessons of equal needs share a column
    columns = {"01": "01", "02": "02 and 03", "04": "04", "05": "05 to 07", "08": "08"}
    return pd.DataFrame({title: {name: use(name, lesson) for name in load()} for lesson, title in columns.items()})
