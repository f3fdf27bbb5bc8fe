"""Work shared among processes that end with their parent.

It is a pool of the standard library, not joblib's: joblib's workers go on after their parent was killed.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TypeVar

from tqdm.auto import tqdm

from medsynth_lib.files import DataError

Result = TypeVar("Result")


def run(
    function: Callable[..., Result],
    tasks: list[tuple],
    jobs: int,
    folder: Path | str | None,
    progress: bool = False,
    what: str = "simulating",
    unit: str = "subject",
) -> list[Result]:
    """Call `function(*task)` for all tasks, in several processes of one thread each.

    Args:
        function: at the top of a module, since it is sent to the processes.
        tasks: argument tuples.
        jobs: processes; one task, or one process, runs here.
        folder: what an error names as written.
        progress: show a progress bar.
        what: the bar's title.
        unit: what the bar counts.

    Returns:
        The results, in the order of the tasks.

    Raises:
        DataError: naming the folder, where a process is killed.
    """

    def bar(results: Iterable[Result]) -> list[Result]:
        return list(tqdm(results, total=len(tasks), desc=what, unit=unit, disable=not progress))

    if jobs == 1 or len(tasks) < 2:
        return bar(function(*task) for task in tasks)
    try:
        with ProcessPoolExecutor(min(jobs, len(tasks)), initializer=prepare_worker, initargs=(os.getpid(),)) as pool:
            return bar(pool.map(function, *zip(*tasks, strict=True)))
    except BrokenProcessPool as error:
        raise DataError(
            f"{folder}: a worker was killed, most likely for lack of memory; "
            "run again with fewer jobs: what is finished is kept."
        ) from error


def prepare_worker(parent: int) -> None:
    """Give a worker one thread, and end it with its parent.

    A parent that was killed could not tell it.
    """
    import torch  # here, since a notebook's runner does without

    torch.set_num_threads(1)
    end_with(parent)


def end_with(parent: int) -> None:
    """End this process as soon as it is no longer the child of process `parent`."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def headless() -> bool:
    """Return whether interactive widgets would be lost.

    That is so with MEDSYNTH_HEADLESS=1, and without a live Jupyter kernel.
    """
    if os.environ.get("MEDSYNTH_HEADLESS") == "1":
        return True
    if "IPython" not in sys.modules:
        return True
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is None
