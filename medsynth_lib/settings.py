"""Profiles: the same notebook at four sizes (quick, lesson, gpu, paper), as data."""

import os
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[1]


def notebooks_folder() -> Path:
    """Folder of the notebooks: MEDSYNTH_NOTEBOOKS, else `notebooks` beside the package."""
    return Path(os.environ.get("MEDSYNTH_NOTEBOOKS") or REPO / "notebooks")


class Settings:
    """Read-only settings of one notebook, by name: `settings.steps`."""

    def __init__(self, values: dict, where: str):
        self.__dict__.update(_values=dict(values), _where=where)

    def __getattr__(self, key):
        if key.startswith("_"):
            raise AttributeError(key)
        if key not in self._values:
            raise AttributeError(f"{self._where} has no setting {key!r}; it has {_names(self._values)}.")
        return self._values[key]

    def __setattr__(self, key, value):
        raise AttributeError(f"Settings are read-only; put {{{key!r}: {value!r}}} into OVERRIDES and run again.")

    def as_dict(self) -> dict:
        """All settings, a copy."""
        return dict(self._values)

    def __repr__(self):
        return "Settings(" + ", ".join(f"{key}={value!r}" for key, value in self._values.items()) + ")"


def load_settings(notebook: str, profile: str, overrides: dict | None = None, folder=None) -> Settings:
    """Read one notebook's section of a profile and lay overrides over it.

    notebook: its number, such as "02".  profile: the name of a YAML file in `folder`/profiles.
    overrides: settings to replace; each must exist in the profile and keep its type.
    folder: the notebook folder; None finds it.
    Raises ValueError (profile, value) or KeyError (section, setting), naming what is valid.
    """
    folder = Path(folder or notebooks_folder()) / "profiles"
    path = folder / f"{profile}.yaml"
    if not path.is_file():
        raise ValueError(f"Unknown profile {profile!r}; {folder} has {_names(p.stem for p in folder.glob('*.yaml'))}.")
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path} is not readable YAML ({str(error).splitlines()[0]}); restore it.") from error
    if not isinstance(sections, dict) or not all(isinstance(s or {}, dict) for s in sections.values()):
        raise ValueError(f"{path} does not hold one section of settings a notebook; restore it.")
    sections = {str(number).zfill(2): section or {} for number, section in sections.items()}  # YAML reads 01 as 1
    if notebook not in sections:
        raise KeyError(f"{path.name} has no section for notebook {notebook!r}; it has {_names(sections)}.")
    values = sections[notebook]
    for key, value in values.items():
        _refuse_text_number(path, key, value)
    for key, value in (overrides or {}).items():
        if key not in values:
            raise KeyError(f"OVERRIDES names {key!r}, unknown to {path.name} [{notebook}]; it has {_names(values)}.")
        values[key] = _same_type(key, values[key], value)
    return Settings(values, f"{path.name} [{notebook}]")


def _names(names) -> str:
    return ", ".join(sorted(map(str, names))) or "nothing"


def _refuse_text_number(path, key, value):
    """YAML 1.1 reads 1e-4 as text, which would fail far from its cause."""
    if isinstance(value, str) and value[:1] in "0123456789+-." and "e" in value.lower():
        try:
            float(value)
        except ValueError:
            return
        raise ValueError(f"{path.name}: {key}: {value} is read as text; write {float(value)!r} with a dot: 1.0e-4.")


def _same_type(key, old, new):
    if type(old) is float and type(new) is int:
        return float(new)
    if old is not None and type(old) is not type(new):
        raise ValueError(
            f"OVERRIDES[{key!r}] = {new!r} is {type(new).__name__}, but the profile's {old!r} is {type(old).__name__}; "
            f"give a {type(old).__name__}."
        )
    return new
