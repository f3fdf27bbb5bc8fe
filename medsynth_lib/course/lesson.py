"""What the first cell of every notebook opens."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from medsynth_lib.course.results import Results
from medsynth_lib.files import DataError, full_path
from medsynth_lib.settings import REPO, Lesson08Settings, PairedData, VolumeData, load_settings


@dataclass
class Lesson:
    """One notebook's run: where it reads and writes, its settings and its results."""

    notebook: str  # its number, such as "02"
    profile: str
    seed: int
    data_dir: Path | None  # folder of real data; None: the simulated subjects
    out: Path  # folder of its results
    settings: PairedData | VolumeData | Lesson08Settings  # of this lesson, LessonNNSettings
    results: Results


def open_lesson(
    notebook: str,
    profile: str = "",
    seed: int = 0,
    data_dir: str | Path = "",
    out_dir: str | Path = "",
    overrides: Mapping | None = None,
) -> Lesson:
    """Check a notebook's parameters, seed torch and print one line about the environment.

    Args:
        notebook: its number, such as "02".
        profile: quick, lesson, gpu or paper; "" takes MEDSYNTH_PROFILE, else lesson.
        seed: of torch's generator and of all that the lesson draws; a whole number from 0.
        data_dir: folder of real data; "" takes the environment's DATA_DIR, else the subjects are simulated.
        out_dir: results go to out_dir/NN; "" takes MEDSYNTH_OUT_DIR, else build/by-hand/<profile> beside the library.
        overrides: settings laid over the profile's, nested as they are.

    Returns: the lesson; its folder of results exists and holds an empty results.json.
    Raises: ValueError (DataError for files), KeyError or FileNotFoundError, naming the parameter and its remedy.
    """
    profile = profile or os.environ.get("MEDSYNTH_PROFILE") or "lesson"
    settings = load_settings(notebook, profile, overrides)
    if type(seed) is not int or seed < 0:
        raise ValueError(f"SEED = {seed!r} is not a whole number from 0; give one, such as 0.")
    scans = data_folder(data_dir or os.environ.get("DATA_DIR") or "")
    base = out_dir or os.environ.get("MEDSYNTH_OUT_DIR") or REPO / "build" / "by-hand" / profile
    out = full_path(base).resolve() / notebook
    make_folder(out)
    prepare_kernel(seed)
    print(f"{environment()} | profile {profile}{TRIAL if profile == 'quick' else ''}")
    results = Results(out / "results.json", notebook, profile, seed)
    return Lesson(notebook, profile, seed, scans, out, settings, results)


TRIAL = ": a trial run, its numbers mean nothing; the texts describe profile lesson"


def data_folder(given: str | Path) -> Path | None:
    """Resolve DATA_DIR; None where it is empty. Raises FileNotFoundError where it is no folder."""
    folder = full_path(given).resolve() if given else None
    if folder and not folder.is_dir():
        raise FileNotFoundError(f"DATA_DIR {folder} is not a folder; correct it, or leave it empty to simulate.")
    return folder


def make_folder(out: Path) -> None:
    """Make the folder of results. Raises DataError where it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"OUT_DIR {out}: cannot be made ({error.strerror}); choose a folder that can be written."
        ) from error


def prepare_kernel(seed: int) -> None:
    """Seed torch, keep to MEDSYNTH_THREADS threads and let figures be drawn once."""
    import torch  # here, since the command line imports this package and does without

    if os.environ.get("MEDSYNTH_THREADS"):
        torch.set_num_threads(int(os.environ["MEDSYNTH_THREADS"]))
    if os.environ.get("MPLBACKEND", "").endswith("backend_inline"):  # as `medsynth run` sets it
        draw_once()
    torch.manual_seed(seed)


def environment() -> str:
    """Name the versions, the device and the number of threads in one line."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    versions = f"medsynth {version('medsynth')}, torch {torch.__version__}, monai {version('monai')}"
    return f"{versions} | {device}, {torch.get_num_threads()} threads"


def draw_once() -> None:
    """Draw a cell's figures only as they are shown."""
    # By default pyplot draws them before, too, for a window that nobody looks at.
    import matplotlib.pyplot as plt

    plt.switch_backend(plt.get_backend())  # which sets the hook, and would at the first figure
    plt.uninstall_repl_displayhook()
