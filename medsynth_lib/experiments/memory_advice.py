"""What to change after a training ran out of memory, by the planner."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psutil
import torch

from medsynth_lib.profiling import planner
from medsynth_lib.settings import BaselineSettings, HAGANSettings, TrainingSettings
from medsynth_lib.training.loop import Algorithm

Build = Callable[[Any], Algorithm]  # makes an algorithm of its settings


def with_advice(
    error: RuntimeError | MemoryError, build: Build, settings: TrainingSettings, sample: Any, device: torch.device
) -> RuntimeError | MemoryError | None:
    """Make an error of the same kind whose text says what fits.

    Args:
        error: what a training raised.
        build: of the algorithm that was trained.
        settings: of the training.
        sample: one of its data set.
        device: that it ran on.

    Returns:
        The error to raise; None where the given one has another cause than memory.
    """
    text = memory_advice(error, build, settings, sample, device) if planner.is_out_of_memory(error) else None
    if text is None:
        return None
    # NumPy's own kind of MemoryError cannot be made from a text
    kind = next(kind for kind in (torch.OutOfMemoryError, MemoryError, RuntimeError) if isinstance(error, kind))
    return kind(text)


def memory_advice(
    error: BaseException, build: Build, settings: TrainingSettings, sample: Any, device: torch.device
) -> str | None:
    """List settings and the memory that each would need; arguments as in `with_advice`."""
    on_gpu = device.type == "cuda"
    available = torch.cuda.get_device_properties(device).total_memory if on_gpu else psutil.virtual_memory().total
    if isinstance(settings, HAGANSettings):

        def hagan(size: int, sub_volume: float, **changes: Any) -> Algorithm:
            return build(replace(settings, size=size, fraction=sub_volume, **changes))

        others = [] if settings.lean else [("lean form", functools.partial(hagan, lean=True))]
        setting = planner.Setting(settings.size, settings.batch_size, sub_volume=settings.fraction)
        return planner.advice(error, hagan, setting, available, others)
    if isinstance(settings, BaselineSettings):

        def baseline(size: int) -> Algorithm:
            return build(replace(settings, size=size))

        return planner.advice(error, baseline, planner.Setting(settings.size, settings.batch_size), available)
    setting = planner.Setting(None, settings.batch_size)
    return planner.advice(error, lambda: build(settings), setting, available, sample=sample)
