"""What a training step computes and moves: FLOP and bytes of every operation, counted on fake tensors; the roofline."""

import math
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from medsynth_lib.profiling import phases
from medsynth_lib.profiling.fake import call, fake_tensors, tensors
from medsynth_lib.profiling.ledger import Training

aten = torch.ops.aten
MOVES_NOTHING = (
    aten._unsafe_view,
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
)
WRITES_ONLY: tuple = (
    aten.copy_,
    aten.zero_,
    aten.fill_,
    aten.normal_,
    aten.uniform_,
    aten.bernoulli_,
)  # their first argument
WRITES_ONLY += (aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like)
WRITES_ONLY += (aten.new_zeros, aten.new_ones, aten.new_full, aten._foreach_zero_, aten._foreach_copy_)
OTHER = "other"  # the phase of what belongs to no update


class Work(TorchDispatchMode):
    """Note each operation below autograd while active: `operations` lists (Phase, name, FLOP, bytes).

    FLOP are those of convolutions and matrix products, two a multiply-add. Bytes are the inputs and outputs of every
    operation, once each, as if nothing stayed in a cache between operations. Views, questions and memory that is only
    reserved move nothing.
    """

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = call(func, args, kwargs)
        if func is torch.ops.prim.device.default:  # a question
            return out
        kind, flop, moved = func._overloadpacket, 0, 0
        if kind in flop_registry:
            flop = flop_registry[kind](*args, **kwargs, out_val=out)
        if not func.is_view and kind not in MOVES_NOTHING:
            read = args[1:] if kind in WRITES_ONLY else args, {k: v for k, v in kwargs.items() if k != "out"}
            written = tensors(out) or tensors(
                [args[i] for i, a in enumerate(func._schema.arguments[: len(args)]) if a.is_write]
            )
            moved = sum(map(block, [*tensors(read), *written])) if written else 0
        self.operations.append((phases.current(), str(kind), flop, moved))
        return out


def block(tensor: torch.Tensor) -> int:
    """Count the bytes of a tensor; a dimension along which it is expanded holds one number."""
    sizes = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 0]
    return math.prod(sizes) * tensor.element_size()


def operations(build: Callable[[], Training]) -> pd.DataFrame:
    """Count the second step of a training, in which optimisers have their state.

    Returns: a row an operation: "phase", "name", "flop", "bytes".
    """
    with fake_tensors(), Work() as counter:
        training = build()
        training.step()
        counter.operations.clear()
        training.step()
    rows = [(phase.name or OTHER, *rest) for phase, *rest in counter.operations]
    return pd.DataFrame(rows, columns=["phase", "name", "flop", "bytes"])


def by_phase(step: pd.DataFrame) -> pd.DataFrame:
    """Sum up `operations` by phase; "intensity" is FLOP a byte."""
    table = step.groupby("phase", sort=False)[["flop", "bytes"]].sum()
    return table.assign(intensity=table["flop"] / table["bytes"])


def least_seconds(step: pd.DataFrame, flops: float, bandwidth: float) -> pd.Series:
    """Say how long each of the `operations` takes at least.

    An operation waits for arithmetic or for memory.

    Args:
        flops: peak of the device, FLOP/s.
        bandwidth: peak of its memory, bytes/s.
    """
    return np.maximum(step["flop"] / flops, step["bytes"] / bandwidth)


def attainable(intensity: float | np.ndarray, flops: float, bandwidth: float) -> float | np.ndarray:
    """Return the FLOP/s that a device can reach: the roofline (Williams et al. 2009).

    Args:
        intensity: FLOP a byte.
        flops, bandwidth: peaks of the device, as in `least_seconds`.
    """
    return np.minimum(flops, bandwidth * np.asarray(intensity))


# Peaks by data sheet: single-precision FLOP/s and bytes/s of the memory. Tensor cores count where the name says TF32; there
# the peak holds for matrix products, too, although torch does not allow TF32 in them by default.
DEVICES = {
    "Titan Xp (the paper trained on)": (12.1e12, 548e9),
    "V100 16 GB (the paper measured on)": (15.7e12, 900e9),
    "A100 40 GB": (19.5e12, 1555e9),
    "A100 40 GB, TF32 (what PyTorch allows in convolutions)": (156e12, 1555e9),
}


def measured_peaks(n: int = 1024, repeats: int = 3) -> tuple[float, float]:
    """Measure the peaks of this machine's CPU by a matrix product and a copy.

    It uses torch's present number of threads.

    Args:
        n: rows and columns of the matrices.
        repeats: the fastest counts.

    Returns: FLOP/s and bytes/s.
    """

    def best(function):
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    a, b, much = torch.rand(n, n), torch.rand(n, n), torch.rand(2**25)
    target = torch.zeros_like(much)  # there already: a new block would be timed with its page faults
    return 2 * n**3 / best(lambda: a @ b), 2 * much.nbytes / best(lambda: target.copy_(much))
