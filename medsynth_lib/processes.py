"""Work shared among processes that end with their parent."""

import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch
from tqdm.auto import tqdm

from medsynth_lib.files import DataError


def run(function, tasks, jobs, folder, progress=False, what="simulating", unit="subject"):
    """Results of ``function(*task)`` for all tasks, in order, in ``jobs`` processes of one thread each.

    Raises DataError, naming the ``folder`` that is written, where a worker is killed.
    """

    def bar(results):
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


def prepare_worker(parent):
    """One thread a worker; and a worker ends with its parent, even where that was killed and could not tell it."""

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    torch.set_num_threads(1)
    threading.Thread(target=watch, daemon=True).start()


def headless() -> bool:
    """True where interactive widgets would be lost: MEDSYNTH_HEADLESS=1, or no live Jupyter kernel."""
    if os.environ.get("MEDSYNTH_HEADLESS") == "1":
        return True
    if "IPython" not in sys.modules:
        return True
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is None
