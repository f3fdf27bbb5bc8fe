"""What is known of each public data set (registry.yaml), and which lesson can use it for what."""

from functools import cache
from pathlib import Path

import pandas as pd
import yaml

from medsynth_lib.files import DataError

PATH = Path(__file__).parent / "registry.yaml"
REQUIRED = {"title", "version", "licence", "licence_link", "citation", "size_gb", "how", "layout", "sites"}
REQUIRED |= {"preparation", "roles"}
OPTIONAL = {"subjects", "unpacked_gb", "files", "steps"}
FILE_KEYS = {"url", "name", "into", "bytes", "md5", "hash_source"}
HOW = ("direct", "client", "registration")
# Lessons by role: pairs of input contrasts and T1 at two sites, or single volumes. Lesson 01 prepares both; 04 takes neither.
ROLES_OF = {"01": ("pairs", "volumes"), "02": ("pairs",), "03": ("pairs",), "04": ()}
ROLES_OF |= {lesson: ("volumes",) for lesson in ("05", "06", "07", "08")}


@cache
def load(path=PATH):
    """All entries, name -> dictionary, checked. Raises DataError naming entry and key."""
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path}: no readable registry ({str(error).splitlines()[0]}); restore the file.") from error
    if not isinstance(entries, dict):
        raise DataError(f"{path}: is not a list of data sets by name; restore the file.")
    for name, entry in entries.items():
        check(path, name, entry)
    return entries


def check(path, name, entry):
    """Raise DataError unless an entry has what every entry must have, and nothing unknown."""

    def wrong(what):
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
    roles = entry["roles"]
    if not isinstance(roles, dict) or set(roles) != {"pairs", "volumes"}:
        raise wrong("roles are not pairs and volumes")
    for role, keys in (("pairs", {"inputs", "target", "shift"}), ("volumes", {"modality", "kind", "note"})):
        if not isinstance(roles[role], dict) or set(roles[role]) not in ({"refuse"}, keys):
            raise wrong(f"roles: {role} needs either refuse or {', '.join(sorted(keys))}")


def entry(name):
    """One entry; raises DataError for an unknown name."""
    if name not in load():
        raise DataError(f"{name}: no such data set; there are {', '.join(load())}.")
    return load()[name]


def refusal(name, role):
    """Why a data set cannot play a role ("pairs" or "volumes"); None where it can, or is not in the registry."""
    return load().get(name, {"roles": {role: {}}})["roles"][role].get("refuse")


def use(name, lesson):
    """What a lesson takes from a data set: "FLAIR + T2 → T1", "T1 brain", or "– reason"."""
    if not ROLES_OF[lesson]:
        return "– simulated only: it compares on people scanned at both sites"
    cells = []
    for role in ROLES_OF[lesson]:
        what = load()[name]["roles"][role]
        if "refuse" in what:
            cells.append(f"– {what['refuse']}")
        elif role == "pairs":
            cells.append(
                f"{' + '.join(map(str.upper, what['inputs']))} → {what['target'].upper()}; shift: {what['shift']}"
            )
        else:
            cells.append(f"{what['modality'].upper()} {what['kind']}, {what['note']}")
    usable = [cell for cell in cells if not cell.startswith("–")]
    return " | ".join(usable or cells)


def matrix():
    """Data set x lesson: what each uses as input and target, or why not."""
    # lessons of equal needs share a column
    columns = {"01": "01", "02": "02 and 03", "04": "04", "05": "05 to 08 (to come)"}
    return pd.DataFrame({title: {name: use(name, lesson) for name in load()} for lesson, title in columns.items()})
