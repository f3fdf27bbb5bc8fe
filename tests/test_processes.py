"""Work in processes: in order, and over when a worker is killed, when Ctrl-C is pressed, and when the parent is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from medsynth_lib.files import DataError
from medsynth_lib.processes import run


def square(i, log=None):
    if log:
        Path(log, f"{i}-{os.getpid()}").touch()
        time.sleep(0.5)
    return i * i


def killed(i):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_tasks(jobs):
    assert run(square, [(i,) for i in range(7)], jobs, None) == [i * i for i in range(7)]
    assert run(square, [], jobs, None) == []


def test_a_killed_worker_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}: a worker was killed.*fewer jobs"):
        run(killed, [(i,) for i in range(4)], 2, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, how):
    code = f"from test_processes import run, square; run(square, [(i, {str(tmp_path)!r}) for i in range(400)], 2, None)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, stderr=subprocess.PIPE, start_new_session=True
    )
    end = time.monotonic() + 100
    while len(list(tmp_path.iterdir())) < 4:
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    workers = {int(path.name.partition("-")[2]) for path in tmp_path.iterdir()}
    assert len(workers) == 2
    # a terminal's Ctrl-C reaches the whole group
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
    error = process.communicate(timeout=60)[1].decode()
    assert process.returncode == -how and (how == signal.SIGKILL or "KeyboardInterrupt" in error)
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in workers):
        assert time.monotonic() < end, "a worker goes on"
        time.sleep(0.05)
    assert len(list(tmp_path.iterdir())) < 100
