"""A GPU's precisions on the CPU, and checkpointing: what the planner can turn in a network that it has built."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

PRECISIONS = ("fp32", "bf16 autocast", "16-bit")
NAMES = (
    "exp",
    "log",
    "log1p",
    "pow",
    "rsqrt",
    "reciprocal",
    "softmax",
    "log_softmax",
    "logsumexp",
    "cumsum",
    "cumprod",
)
FP32_ON_GPU = {F.interpolate, F.group_norm, F.layer_norm, F.softplus, F.softmax, F.log_softmax, F.cosine_similarity}
FP32_ON_GPU |= {torch.Tensor.__pow__, torch.Tensor.__rpow__, torch.Tensor.__rdiv__}
FP32_ON_GPU |= {getattr(place, name) for place in (torch, torch.Tensor) for name in NAMES}


@contextlib.contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Give new floating-point tensors this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def set_precision(network: nn.Module, precision: str) -> None:
    """Wrap the forward pass of a network in place, as Fabric does.

    Inside, tensors have 16 bits, or autocast chooses their type as it does on a GPU. Outside, they have single precision.

    Args:
        network: made for this precision; "16-bit" needs parameters of 16 bits.
        precision: one of `PRECISIONS`.
    """
    if precision == "fp32":
        return
    forward = network.forward

    @functools.wraps(forward)
    def wrapped(*args, **kwargs):
        if precision == "16-bit":
            args = cast(args, torch.float32, torch.bfloat16)
        device = next(network.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16 autocast"), AutocastOfGPU():
            return cast(forward(*args, **kwargs), torch.bfloat16, torch.float32)

    network.forward = wrapped


def cast(tree: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """Turn the tensors of one type in nested lists and dictionaries into another type."""
    return tree_map_only(torch.Tensor, lambda t: t.to(new) if t.dtype is old else t, tree)


class AutocastOfGPU(TorchFunctionMode):
    """Compute group norm, up-sampling and others in single precision, as autocast does on a GPU but not on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in FP32_ON_GPU and torch.is_autocast_enabled("cpu"):
            args = cast(args, torch.bfloat16, torch.float32)
        return func(*args, **kwargs or {})


def checkpoint_blocks(network: nn.Module) -> int:
    """Checkpoint the outermost blocks of a network in place.

    A block holds layers and is not a mere list of blocks. A module with a parametrisation, such as spectral norm, is no
    block: its state changes at every forward pass, and a second pass would not repeat the first. Its other parts can be
    blocks.

    Returns: the number of blocks.
    """
    children = [c for c in network.children() if list(c.children()) and not parametrize.is_parametrized(c)]
    count = 0
    for child in children:
        is_list = type(child) in (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        of_blocks = is_list and any(list(part.children()) for part in child.children())
        if of_blocks or any(map(parametrize.is_parametrized, child.modules())):
            count += checkpoint_blocks(child)
        else:
            child.forward = functools.partial(
                checkpoint, child.forward, use_reentrant=False, context_fn=_autocast_both_times
            )
            count += 1
    return count


def _autocast_both_times() -> tuple:
    """Make the contexts of the two passes of a checkpointed block.

    The second pass runs outside of `set_precision`, so it needs its own.
    """
    return contextlib.nullcontext(), AutocastOfGPU()
