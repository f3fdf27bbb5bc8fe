"""Fake tensors, which have shapes but no data: a training step on them allocates nothing."""

import contextlib
import gc
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


@contextlib.contextmanager
def fake_tensors() -> Iterator[None]:
    """Make all tensors within this block fake."""
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True), _torch_for_fake_tensors():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by deepcopy, of parameters
        yield


@contextlib.contextmanager
def _torch_for_fake_tensors() -> Iterator[None]:
    """Change two functions of torch itself within this block."""
    power_method = _SpectralNorm._power_method

    def exchange(old, new):
        old.data = new.data

    def no_warm_up(self, weight, iterations):
        return power_method(self, weight, min(iterations, self.n_power_iterations))

    # `network.to(...)` swaps parameters, which torch refuses for fake ones: here they get the new one's storage.
    # Spectral norm begins with 15 power iterations. They find nothing here and take most of the time of making a network.
    with (
        mock.patch.object(torch.utils, "swap_tensors", exchange),
        mock.patch.object(_SpectralNorm, "_power_method", no_warm_up),
    ):
        yield


def call(operation: Any, args: tuple, kwargs: dict) -> Any:
    """Call an operation below autograd.

    Returns: its output. A number that is read from a fake tensor, such as a drawn index, is True, 1.0 or 0.
    Raises: ValueError where the operation needs values, which fake tensors lack.
    """
    if operation is aten.native_group_norm_backward.default and isinstance(args[0], FakeTensor):
        return _shapes_of_group_norm_backward(*args)
    try:
        return operation(*args, **kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        if operation is not aten._local_scalar_dense.default:
            raise ValueError(
                f"{operation} needs real values, which fake tensors lack; keep it out of the step"
            ) from error
    return True if args[0].dtype is torch.bool else 1.0 if args[0].is_floating_point() else 0


def _shapes_of_group_norm_backward(grad, x, mean, scale, weight, n, channels, voxels, groups, needs):
    """Make the outputs of this operation on shapes alone.

    Its own way there takes a third of the time of a lean HA-GAN's account.
    """
    per_channel = x.new_empty(channels, dtype=x.dtype if weight is None else weight.dtype)
    outputs = (torch.empty_like(x), per_channel, torch.empty_like(per_channel))
    return tuple(output if needed else None for output, needed in zip(outputs, needs, strict=True))


def tensors(tree: Any) -> list[torch.Tensor]:
    """List the tensors with a storage among the leaves of nested lists and dictionaries."""
    return [t for t in tree_leaves(tree) if isinstance(t, torch.Tensor) and t.layout is torch.strided]


@contextlib.contextmanager
def frozen_garbage() -> Iterator[None]:
    """Let the garbage collector pass over all objects that exist before this block.

    Looking at them again takes longer than a small step.
    """
    if gc.get_freeze_count():  # somebody else froze objects and will undo it
        yield
        return
    gc.collect(1)  # what died lately is not kept; for what died long ago all objects would be looked at
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
