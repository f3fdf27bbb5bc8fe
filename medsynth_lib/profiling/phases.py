"""Phases of a training step: named by hand with `phase`, or found from the updates of an algorithm."""

import contextlib
from collections.abc import Iterator, Mapping

from torch.nn.modules import module as hooks
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Phase:
    """One part of a training step. Its name may become known only at its end."""

    def __init__(self, name: str = ""):
        self.name = name


_entered = [Phase()]  # the innermost phase is the last one


def current() -> Phase:
    """Return the phase that runs now; outside all phases, one without a name."""
    return _entered[-1]


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Name the part of a training step within this block, for the peaks per phase."""
    _entered.append(Phase(name))
    try:
        yield
    finally:
        _entered.pop()


@contextlib.contextmanager
def updates(optimisers: Mapping[str, Optimizer]) -> Iterator[set[str]]:
    """Make one phase of every update within this block.

    An update begins with its first forward pass and ends with its optimiser step.

    Optimisers that step one directly after the other share an update. The algorithm needs no change for this: the hooks
    of torch tell when a module runs and when an optimiser steps.

    Args:
        optimisers: by the name of their network. The first that steps names the phase, see `phase_name`.

    Yields: a set that receives the names of the networks whose optimiser steps.
    """
    names, stepped = {id(optimiser): name for name, optimiser in optimisers.items()}, set()
    outside, update = len(_entered), Phase()

    def begin(*_):
        nonlocal update
        if len(_entered) == outside:
            update = Phase()
            _entered.append(update)

    def begin_step(optimiser, *_):
        if len(_entered) == outside:  # directly after another optimiser's step
            _entered.append(update)
        network = names.get(id(optimiser), "")
        update.name = update.name or phase_name(network)
        stepped.add(network)

    def end_step(*_):
        del _entered[outside:]

    handles = [
        hooks.register_module_forward_pre_hook(begin),
        register_optimizer_step_pre_hook(begin_step),
        register_optimizer_step_post_hook(end_step),
    ]
    try:
        yield stepped
    finally:
        del _entered[outside:]
        for handle in handles:
            handle.remove()


def phase_name(network: str) -> str:
    """Shorten "G^A" to "G" and "D^H" to "D".

    The two encoders E^H and E^G learn apart and stay apart.
    """
    return network if network.startswith("E^") else network.partition("^")[0]
