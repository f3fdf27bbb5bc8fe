"""What every benchmark shares: where it writes, and on what it ran."""

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path

import torch

from medsynth_lib.files import atomic


def arguments(description, **more):
    """Command line of a benchmark: --out, --device and whatever ``more`` names (flag -> default)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for the JSON")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for flag, default in more.items():
        parser.add_argument(f"--{flag}", type=type(default), default=default)
    return parser.parse_args()


def write(out, name, rows, device="cpu"):
    """Print the rows as a table and write them with the machine's description to out/name.json."""
    for row in rows:
        print("  ".join(f"{k}={v}" for k, v in row.items()))
    machine = dict(
        device=torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        date=time.strftime("%Y-%m-%d"),
    )
    with atomic(Path(out) / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(dict(machine=machine, rows=rows), indent=1) + "\n", encoding="utf-8")
    print("written:", Path(out) / f"{name}.json")


def median_seconds(function, repeats=3):
    """Median wall time of a function over repeats, after one warm-up call."""
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def peak_gib():
    """Peak resident memory so far, in GiB: of this process, or of its largest finished worker if that is more."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
