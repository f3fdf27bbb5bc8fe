"""Profiles: the same notebook at four sizes. Profile `lesson` is the base; the others state what differs."""

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from medsynth_lib.settings.algorithms import TrainingSettings, settings_class
from medsynth_lib.settings.lessons import LESSONS

REPO = Path(__file__).resolve().parents[2]
BASE = "lesson"
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def notebooks_folder() -> Path:
    """Find the folder of the notebooks: MEDSYNTH_NOTEBOOKS, else `notebooks` beside the package."""
    return Path(os.environ.get("MEDSYNTH_NOTEBOOKS") or REPO / "notebooks")


def load_settings(notebook: str, profile: str, overrides: Mapping | None = None, folder: Path | None = None) -> Any:
    """Make one lesson's settings: the base, what a profile changes, and overrides on top.

    Args:
        notebook: number of the lesson, such as "02".
        profile: "lesson", or the name of a YAML file in `folder`/profiles. A section of the file names the lessons that
            it changes, such as "03, 04".
        overrides: settings to replace, nested as the settings are: {"pix2pix": {"steps": 10}}.
        folder: the notebook folder; None finds it.

    Returns: a `LessonNNSettings`.
    Raises: ValueError (profile, file, value) or KeyError (lesson, setting), naming what is valid.
    """
    if notebook not in LESSONS:
        raise KeyError(f"no lesson has the number {notebook!r}; there are {', '.join(LESSONS)}.")
    settings = LESSONS[notebook]()
    for where, changes in _sections(notebook, profile, Path(folder or notebooks_folder()) / "profiles"):
        settings = changed(settings, changes, where)
    return changed(settings, overrides or {}, "OVERRIDES")


def changed(settings: Any, changes: Mapping, where: str) -> Any:
    """Lay changes over settings; a nested dictionary changes what it names and leaves the rest.

    With the key ``algorithm``, nested settings become those of another algorithm, from its own defaults on.

    Raises: KeyError for an unknown key, with the nearest known one; ValueError for a value of another type.
    """
    names = [field.name for field in dataclasses.fields(settings)]
    values = {}
    for key, value in changes.items():
        require_known(key, names, where)
        values[key] = _replaced(getattr(settings, key), value, f"{where}[{key!r}]")
    return dataclasses.replace(settings, **values)


def require_known(key: str, names: Iterable[str], where: str) -> None:
    """Raise KeyError for a key that is not among the names; the message has the nearest one."""
    names = list(names)
    if key not in names:
        near = difflib.get_close_matches(str(key), names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise KeyError(
            f"{where} names {key!r}, which is unknown; {hint}known are {', '.join(sorted(names)) or 'none'}."
        )


def parse_value(text: str, old: Any, where: str) -> Any:
    """Read a value from a command line as the type of the value that it replaces.

    Raises: ValueError where the text is no such value; text that is neither true nor false is no bool.
    """
    if isinstance(old, bool):
        if text.lower() not in TRUE + FALSE:
            raise ValueError(f"{where}={text!r} is neither true nor false; write true or false.")
        return text.lower() in TRUE
    if isinstance(old, int | float):
        try:
            return type(old)(text)
        except ValueError as error:
            raise ValueError(f"{where}={text!r} is not a number like {old!r}.") from error
    return text


def _replaced(old: Any, new: Any, where: str) -> Any:
    """The value that takes the place of an old one, of the same type."""
    if isinstance(old, TrainingSettings) and isinstance(new, Mapping):
        new = dict(new)
        base = settings_class(new.pop("algorithm"))() if "algorithm" in new else old
        return changed(base, new, where)
    if isinstance(old, dict) and isinstance(new, Mapping):
        for key in new:
            require_known(key, old, where)
        return old | {key: _replaced(old[key], value, f"{where}[{key!r}]") for key, value in new.items()}
    if isinstance(old, tuple) and isinstance(new, list):
        return tuple(new)
    if type(old) is float and type(new) is int:
        return float(new)
    if isinstance(new, type(old)) and isinstance(new, bool) == isinstance(old, bool):
        return new
    hint = f"; YAML reads {new} as text: write {float(new)!r} with a dot" if _is_number_as_text(old, new) else ""
    raise ValueError(f"{where} = {new!r} is {type(new).__name__}, but {old!r} is {type(old).__name__}{hint}.")


def _is_number_as_text(old: Any, new: Any) -> bool:
    """Whether a number such as 1e-4, which YAML 1.1 reads as text, was meant."""
    if not isinstance(new, str) or not isinstance(old, int | float):
        return False
    try:
        float(new)
    except ValueError:
        return False
    return True


def _sections(notebook: str, profile: str, folder: Path) -> list[tuple[str, Mapping]]:
    """Sections of a profile's file that name a lesson, with a name for error messages."""
    path = folder / f"{profile}.yaml"
    if profile == BASE and not path.is_file():
        return []
    if not path.is_file():
        names = sorted({BASE, *(p.stem for p in folder.glob("*.yaml"))})
        raise ValueError(f"Unknown profile {profile!r}; {folder} has {', '.join(names)}.")
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path} is not readable YAML ({str(error).splitlines()[0]}); restore it.") from error
    if not isinstance(sections, dict) or not all(isinstance(s or {}, dict) for s in sections.values()):
        raise ValueError(f"{path} does not hold sections of settings; restore it.")
    found = []
    for name, section in sections.items():
        numbers = [number.strip().zfill(2) for number in str(name).split(",")]
        for number in numbers:
            require_known(number, LESSONS, path.name)
        if notebook in numbers:
            found.append((f"{path.name} [{name}]", section or {}))
    return found
