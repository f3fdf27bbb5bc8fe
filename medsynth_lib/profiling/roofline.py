"""What a training step computes and moves: FLOP and bytes of every operation, counted on fake tensors; the roofline."""

import math
import time

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from medsynth_lib.profiling.memory import ACTIVE, fake_tensors, run, tensors

aten = torch.ops.aten
MOVES_NOTHING = (aten._unsafe_view, aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)
WRITES_ONLY = (aten.copy_, aten.zero_, aten.fill_, aten.normal_, aten.uniform_, aten.bernoulli_)  # their first argument
WRITES_ONLY += (aten.zeros_like, aten.ones_like, aten.full_like, aten.rand_like, aten.randn_like)
WRITES_ONLY += (aten.new_zeros, aten.new_ones, aten.new_full, aten._foreach_zero_, aten._foreach_copy_)


class Work(TorchDispatchMode):
    """Notes each operation below autograd while active: ``operations`` lists (phase, name, FLOP, bytes).

    FLOP, two a multiply-add, are those of convolutions and matrix products. Bytes are every operation's inputs and outputs, once
    each, as if nothing stayed in a cache between operations; views, questions and memory that is only reserved move nothing.
    """

    def __init__(self):
        super().__init__()
        self.phases, self.operations = ["other"], []

    def __enter__(self):
        ACTIVE.append(self)
        return super().__enter__()

    def __exit__(self, *error):
        ACTIVE.remove(self)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = run(func, args, kwargs)
        if func is torch.ops.prim.device.default:  # a question
            return out
        kind, flop, moved = func._overloadpacket, 0, 0
        if kind in flop_registry:
            flop = flop_registry[kind](*args, **kwargs, out_val=out)
        if not func.is_view and kind not in MOVES_NOTHING:
            read = args[1:] if kind in WRITES_ONLY else args, {k: v for k, v in kwargs.items() if k != "out"}
            written = tensors(out) or tensors([args[i] for i, a in enumerate(func._schema.arguments[: len(args)]) if a.is_write])
            moved = sum(map(block, [*tensors(read), *written])) if written else 0
        self.operations.append((self.phases[-1], str(kind), flop, moved))
        return out


def block(tensor):
    """Bytes of a tensor; a dimension along which it is expanded holds one number."""
    sizes = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or n == 0]
    return math.prod(sizes) * tensor.element_size()


def operations(build):
    """The second step of the Training that ``build()`` makes, in which optimisers have their state: a DataFrame, a row an
    operation, of "phase", "name", "flop", "bytes".
    """
    with fake_tensors(), Work() as counter:
        training = build()
        training.step()
        counter.operations.clear()
        training.step()
    return pd.DataFrame(counter.operations, columns=["phase", "name", "flop", "bytes"])


def by_phase(step):
    """`operations` summed: a DataFrame, a row a phase, and "intensity", FLOP a byte."""
    table = step.groupby("phase", sort=False)[["flop", "bytes"]].sum()
    return table.assign(intensity=table["flop"] / table["bytes"])


def least_seconds(step, flops, bandwidth):
    """What each of the `operations` takes at least on a device with these peaks: one waits for arithmetic or for memory."""
    return np.maximum(step["flop"] / flops, step["bytes"] / bandwidth)


def attainable(intensity, flops, bandwidth):
    """The roofline (Williams et al. 2009): FLOP a second that a device with these peaks, in FLOP/s and bytes/s, can reach."""
    return np.minimum(flops, bandwidth * np.asarray(intensity))


# peaks by data sheet: single-precision FLOP/s, without tensor cores but where it says TF32
# (as if matrix products had it, too, which torch does not allow by default); bytes/s of the memory
DEVICES = {
    "Titan Xp (the paper trained on)": (12.1e12, 548e9),
    "V100 16 GB (the paper measured on)": (15.7e12, 900e9),
    "A100 40 GB": (19.5e12, 1555e9),
    "A100 40 GB, TF32 (what PyTorch allows in convolutions)": (156e12, 1555e9),
}


def measured_peaks(n=1024, repeats=3):
    """(FLOP/s, bytes/s) of this machine's CPU with torch's present threads: a matrix product and a copy, the best of a few."""
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
