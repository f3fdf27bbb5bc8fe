"""What fits on which card: plans of a training step in a setting, and advice after an out-of-memory error."""

import contextlib
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import nn

from medsynth_lib.profiling.ledger import Training, account
from medsynth_lib.profiling.networks import supervised, unsupervised
from medsynth_lib.profiling.precision import PRECISIONS, checkpoint_blocks, default_type, set_precision
from medsynth_lib.profiling.report import GIB, Report

CARDS = (4, 8, 12, 16, 24, 80)  # GB
CONTEXT = 1.0 * GIB  # assumed: the GPU's context and libraries
SLACK = 1.15  # assumed: workspaces and gaps in the allocator, as a factor
TIGHT = 0.8  # of a card: the paper's card held up to 22 % more than `on_a_card` says (Table VIII at 128 and 256)


@dataclass(frozen=True)
class Setting:
    """What can be turned in a training step."""

    size: int | None  # voxels along each axis; None: the shape of the given samples
    batch: int = 1  # volumes in a batch
    precision: str = "fp32"  # one of `PRECISIONS`
    checkpointing: bool = False  # compute blocks again in the backward pass instead of storing them
    sub_volume: float | None = None  # share of the slices that is trained on; None: the network's own

    def __str__(self) -> str:
        extras = [f"sub-volume {self.sub_volume:g}"] if self.sub_volume else []
        extras += ["checkpointing"] if self.checkpointing else []
        extras += [] if self.size else ["volumes as they are"]
        return ", ".join([*([f"{self.size}^3"] if self.size else []), f"batch {self.batch}", self.precision, *extras])


def plan(
    build: Callable, size: int | None, batch: int = 1, precision: str = "fp32", checkpointing: bool = False,
    sub_volume: float | None = None, **task: Any,
) -> Report:  # fmt: skip
    """Account one training step; nothing is allocated.

    Args:
        build: returns an nn.Module, or an algorithm as `fit` trains it. It is given size, batch and sub_volume if it has
            parameters of these names. Without ``sub_volume`` the planner cuts the input along its first axis.
        size, batch, precision, checkpointing, sub_volume: see `Setting`.
        task: of an nn.Module, see `supervised`; of an algorithm ``sample``, see `unsupervised`.

    Raises: ValueError for an unknown precision, and where checkpointing finds no blocks.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown; use one of {PRECISIONS}")
    return account(lambda: training_in(Setting(size, batch, precision, checkpointing, sub_volume), build, **task))


def training_in(setting: Setting, build: Callable, **task: Any) -> Training:
    """Make the training of a network or an algorithm in a setting.

    Precisions and optimiser are those of a GPU.
    """
    asked = inspect.signature(build).parameters
    given = {k: v for k, v in asdict(setting).items() if k in asked and v is not None}
    with default_type(torch.bfloat16 if setting.precision == "16-bit" else torch.float32):
        made = build(**given)
    share = 1.0 if "sub_volume" in given else setting.sub_volume or 1.0
    if isinstance(made, nn.Module):
        result = supervised(made, setting.batch, setting.size, share, **task)
    elif share != 1 or setting.size and "size" not in given:
        raise ValueError(f"{type(made).__name__} has no setting that would make it {setting}")
    else:
        result = unsupervised(made, setting.batch, setting.size, task.get("sample"))
    if setting.checkpointing and not sum(map(checkpoint_blocks, result.networks.values())):
        raise ValueError("found no blocks to checkpoint: modules that hold layers, below the network itself")
    for network in result.networks.values():
        set_precision(network, setting.precision)
    for group in (group for optimiser in result.optimisers.values() for group in optimiser.param_groups):
        group["foreach"] = True  # the default on a GPU: all parameters at once, with temporaries as large as they are
    return result


def on_a_card(peak: float) -> float:
    """Estimate the bytes that a card needs for a step with this accounted peak.

    The margin is `CONTEXT` and `SLACK`.
    """
    return CONTEXT + SLACK * peak


def largest(
    build: Callable, sizes: Sequence[int], batches: Sequence[int], cards: Sequence[float] = CARDS,
    peaks: Mapping[tuple[int, int], int] | Sequence = (), **setting: Any,
) -> pd.DataFrame:  # fmt: skip
    """Find the largest setting that fits each card: the largest size, then the largest batch.

    Args:
        build: see `plan`.
        sizes, batches: to choose from.
        cards: in GB, 2^30 bytes.
        peaks: what is planned already of this network in this setting, bytes by (size, batch).
        setting: for `plan`. `TIGHT` is not regarded.

    Returns: a row a card: "size", "batch", the accounted "peak_gib" and "card_gib", what the card needs. Values are missing
        where nothing fits.
    """
    rows, tried = [], dict(peaks)
    for gb in cards:
        row = {"card": gb}
        for size, batch in sorted(itertools.product(sizes, batches), reverse=True):
            if (size, batch) not in tried:
                tried[size, batch] = plan(build, size, batch, **setting).peak
            peak = tried[size, batch]
            if on_a_card(peak) <= gb * GIB:
                row |= dict(size=size, batch=batch, peak_gib=peak / GIB, card_gib=on_a_card(peak) / GIB)
                break
        rows.append(row)
    return pd.DataFrame(rows, columns=["card", "size", "batch", "peak_gib", "card_gib"]).set_index("card")


# -- advice --------------------------------------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that a GPU or the host has no memory left."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text


def advice(
    error: BaseException, build: Callable, setting: Setting, memory: float,
    others: Sequence[tuple[str, Callable]] = (), peaks: Mapping[Setting, int] | Sequence = (), **task: Any,
) -> str | None:  # fmt: skip
    """Say what to change after an out-of-memory error, one lever at a time.

    Args:
        build: see `plan`.
        setting: the one that failed. Settings that the network cannot take are left out.
        memory: bytes of the card.
        others: further levers: a name and a function that builds the model.
        peaks: what is planned already of ``build`` and ``task``, bytes by setting.
        task: for `plan`.

    Returns: a text; None for any other error.
    """
    if not is_out_of_memory(error):
        return None
    lines, known = [], dict(peaks)
    changes = [(lever, "", build) for lever in [setting, *levers(setting, build)]]
    for lever, name, make in [*changes, *((setting, *other) for other in others)]:
        with contextlib.suppress(ValueError, RuntimeError):
            peak = known.get(lever) if make is build else None
            needs = on_a_card(peak or plan(make, **asdict(lever), **task).peak)
            name = ", ".join(filter(None, [str(lever), name]))
            verdict = "" if needs > memory else ", fits" if needs <= TIGHT * memory else ", fits, but tightly"
            lines.append(f"  {name}: about {needs / GIB:.1f} GiB{verdict}")
    lines = lines or ["  none: this step cannot be planned, since its course depends on values"]
    return f"Out of memory: the device has {memory / GIB:.1f} GiB. Estimated needs:\n" + "\n".join(lines)


def levers(setting: Setting, build: Callable) -> list[Setting]:
    """List the settings that need less memory by one change.

    The change is in batch, checkpointing, precision, sub-volume or size.
    """
    own = inspect.signature(build).parameters.get("sub_volume")  # the network's own share, which it takes if given none
    share = setting.sub_volume or (own.default if own and isinstance(own.default, float | int) else 1.0)
    found = [replace(setting, batch=setting.batch // 2)] if setting.batch > 1 else []
    found += [] if setting.checkpointing else [replace(setting, checkpointing=True)]
    found += [replace(setting, precision="bf16 autocast")] if setting.precision == "fp32" else []
    found += [replace(setting, sub_volume=share / 2)]
    return found + ([replace(setting, size=setting.size // 2)] if setting.size else [])
