"""HA-GAN at the paper's size: memory and FLOP against the public implementation, the lean form and a GPU's measurements."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import segresnet

from medsynth_lib.profiling.ledger import account, measured
from medsynth_lib.profiling.networks import hagan, unsupervised
from medsynth_lib.profiling.planner import Setting, training_in
from medsynth_lib.profiling.report import GIB, MIB
from medsynth_lib.profiling.roofline import Work

pytestmark = pytest.mark.slow
RESULTS = Path(__file__).parents[2] / "benchmarks/results"


@functools.cache
def step_report(size, batch, lean):
    """The report of a step and its `Work`, as the CPU runs it: Adam one parameter after the other, like the references."""
    work = Work()

    def build():
        training = unsupervised(hagan(size, lean=lean), batch, size)

        def step():
            work.operations.clear()
            with work:
                training.step()

        return replace(training, step=step)

    return account(build), sum(flop for _, _, flop, _ in work.operations), sum(moved for *_, moved in work.operations)


def compared(size, lean):
    """Peak without the running mean of the generator (200 MiB), which neither the reference nor its lean prototype has."""
    report = step_report(size, 2, lean)[0]
    return report.peak - report.layers["parameters"].filter(regex="^mean ").sum()


@pytest.mark.parametrize("size, reference", [(128, 1568), (256, 3642)])
def test_plain_step_is_near_the_public_implementation(size, reference):
    """Ours adds a running mean of the generator and drops the gradients of the networks that do not learn."""
    assert abs(step_report(size, 2, False)[0].peak / MIB / reference - 1) < 0.05


@pytest.mark.parametrize("size, share", [(128, 0.55), (256, 0.42)])
def test_lean_step_takes_half(size, share):
    assert compared(size, True) <= share * compared(size, False)


def test_512_fits_a_small_card():
    assert step_report(512, 1, True)[0].peak < 4.5 * 1024 * MIB


def test_work_of_a_hagan_step():
    """1556 GFLOP at 128^3 and batch 2, as counted for the public implementation."""
    _, flop, moved = step_report(128, 2, False)
    assert flop == pytest.approx(1556e9, rel=0.03)
    assert step_report(128, 2, True)[2] < moved  # up-sampled tensors are never written


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "build, setting",
    [(segresnet, Setting(96, 2)), (hagan, Setting(128, 2)), (functools.partial(hagan, lean=True), Setting(256, 2))],
)
def test_a_gpu_allocates_what_is_planned(build, setting):
    """Within 10 % of max_memory_allocated, in single precision. The rest is scratch of cuDNN, which a network must be large
    enough to outweigh: an H200 asked for 77 MB more than the 81 MB planned for a HA-GAN of an eighth of the widths.
    """
    planned = account(functools.partial(training_in, setting, build))
    found = measured(functools.partial(training_in, setting, build))
    assert abs(found["allocated"] / planned.peak - 1) < 0.1
    assert found["allocated"] <= found["reserved"] <= found["driver"]


@pytest.mark.parametrize("name, size", [("HA-GAN", 64), ("HA-GAN, lean", 128)])
def test_what_a_gpu_measured_is_what_is_planned_today(name, size):
    """The committed run of benchmarks/memory_gpu.py within 10 % of the plan, which must not move away from it."""
    rows = json.loads((RESULTS / "memory-cuda.json").read_text())["rows"]
    (row,) = [r for r in rows if (r["network"], r["size"], r["precision"]) == (name, size, "fp32")]
    if "lean" in name:  # its optimiser has no form for all parameters at once, which a plan for a GPU else assumes
        planned = step_report(size, 2, True)[0]
    else:
        planned = account(functools.partial(training_in, Setting(size, 2), hagan))
    assert row["allocated_gib"] == pytest.approx(planned.peak / GIB, rel=0.1)
