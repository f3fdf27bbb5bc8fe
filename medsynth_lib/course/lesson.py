"""What the first cell of every notebook opens."""

import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from medsynth_lib.course.results import Results
from medsynth_lib.settings import REPO, Settings, load_settings


@dataclass
class Lesson:
    """One notebook's run: where it reads and writes, its settings and its results."""

    notebook: str
    profile: str
    seed: int
    data_dir: Path | None
    out: Path
    settings: Settings
    results: Results


def open_lesson(notebook: str, profile="", seed=0, data_dir="", out_dir="", overrides=None) -> Lesson:
    """Check a notebook's parameters, seed torch and print one line about the environment.

    notebook: its number, such as "02".
    profile: quick, lesson, gpu or paper; "" takes MEDSYNTH_PROFILE, else lesson.
    data_dir: folder of real data; "" takes the environment's DATA_DIR, else None: the simulated subjects.
    out_dir: results go to out_dir/NN; "" takes MEDSYNTH_OUT_DIR, else build/by-hand/<profile> beside the library.
    overrides: settings laid over the profile's.
    Raises ValueError, KeyError or FileNotFoundError naming the parameter and its remedy.
    """
    import torch  # here, since the command line imports this module and does without

    profile = profile or os.environ.get("MEDSYNTH_PROFILE") or "lesson"
    settings = load_settings(notebook, profile, overrides)
    if type(seed) is not int or seed < 0:
        raise ValueError(f"SEED = {seed!r} is not a whole number from 0; give one, such as 0.")
    data_dir = data_dir or os.environ.get("DATA_DIR")
    data_dir = Path(data_dir).expanduser().resolve() if data_dir else None
    if data_dir and not data_dir.is_dir():
        raise FileNotFoundError(f"DATA_DIR {data_dir} is not a folder; correct it, or leave it empty to simulate.")
    out = (
        Path(out_dir or os.environ.get("MEDSYNTH_OUT_DIR") or REPO / "build" / "by-hand" / profile).resolve() / notebook
    )
    out.mkdir(parents=True, exist_ok=True)

    if os.environ.get("MEDSYNTH_THREADS"):
        torch.set_num_threads(int(os.environ["MEDSYNTH_THREADS"]))
    if os.environ.get("MPLBACKEND", "").endswith("backend_inline"):  # as `run` sets it
        draw_once()
    torch.manual_seed(seed)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(
        f"medsynth {version('medsynth')}, torch {torch.__version__}, monai {version('monai')} | "
        f"{device}, {torch.get_num_threads()} threads | profile {profile}"
        + (": a trial run, its numbers mean nothing; the texts describe profile lesson" if profile == "quick" else "")
    )
    results = Results(out / "results.json", notebook, profile, seed)
    return Lesson(notebook, profile, seed, data_dir, out, settings, results)


def draw_once():
    """Let a cell's figures be drawn as they are shown alone; pyplot would draw them before, for a window that nobody looks at."""
    import matplotlib.pyplot as plt

    plt.switch_backend(plt.get_backend())  # which sets the hook, and would at the first figure
    plt.uninstall_repl_displayhook()
