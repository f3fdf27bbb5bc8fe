"""What a training step computes and moves: FLOP and bytes by phase, counted on fake tensors; the roofline."""

import time

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from medsynth_lib.evaluation.memory import ACTIVE, fake_tensors, run, tensors

aten = torch.ops.aten
MOVES_NOTHING = (aten._unsafe_view, aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)


class Work(TorchDispatchMode):
    """Counts each operation below autograd while active: ``counts[phase]`` is [FLOP, bytes].

    FLOP, two a multiply-add, are those of convolutions and matrix products. Bytes are every operation's inputs and outputs, once
    each, as if nothing stayed in a cache between operations; views, questions and memory that is only reserved move nothing.
    """

    def __init__(self):
        super().__init__()
        self.phases, self.counts = ["other"], {}

    def __enter__(self):
        ACTIVE.append(self)
        return super().__enter__()

    def __exit__(self, *error):
        ACTIVE.remove(self)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = run(func, args, kwargs)
        count = self.counts.setdefault(self.phases[-1], [0, 0])
        if func._overloadpacket in flop_registry:
            count[0] += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        if tensors(out) and not func.is_view and func._overloadpacket not in MOVES_NOTHING:
            count[1] += sum(t.numel() * t.element_size() for t in tensors((args, kwargs, out)))
        return out


def work(build):
    """FLOP and bytes of one step of the Training that ``build()`` makes: a DataFrame, a row a phase, and "intensity", their
    ratio in FLOP a byte.
    """
    with fake_tensors(), Work() as counter:
        training = build()
        counter.counts.clear()
        training.step()
    table = pd.DataFrame.from_dict(counter.counts, orient="index", columns=["flop", "bytes"])
    return table.assign(intensity=table["flop"] / table["bytes"])


def attainable(intensity, flops, bandwidth):
    """The roofline (Williams et al. 2009): FLOP a second that a device with these peaks, in FLOP/s and bytes/s, can reach."""
    return np.minimum(flops, bandwidth * np.asarray(intensity))


# peaks by data sheet: single-precision FLOP/s without tensor cores, bytes/s of the memory
DEVICES = {
    "Titan Xp (the paper trained on)": (12.1e12, 548e9),
    "V100 16 GB (the paper measured on)": (15.7e12, 900e9),
    "A100 40 GB": (19.5e12, 1555e9),
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

    a, b, block = torch.rand(n, n), torch.rand(n, n), torch.rand(2**25)
    target = torch.zeros_like(block)  # there already: a new block would be timed with its page faults
    return 2 * n**3 / best(lambda: a @ b), 2 * block.nbytes / best(lambda: target.copy_(block))
