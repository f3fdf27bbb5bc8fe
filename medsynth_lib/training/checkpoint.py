"""Checkpoints without pickle: tensors and one JSON header in a safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from medsynth_lib.files import atomic

Networks = Mapping[str, nn.Module]
Optimisers = Mapping[str, torch.optim.Optimizer]


def save_checkpoint(path: Path, networks: Networks, optimisers: Optimisers, meta: dict) -> None:
    """Write the state of networks and optimisers, and ``meta`` as JSON, atomically."""
    tensors = {}
    for name, network in networks.items():
        tensors |= {f"network/{name}/{k}": v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    for name, optimiser in optimisers.items():
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {
                f"optimiser/{name}/{index}/{k}": torch.as_tensor(v).cpu().contiguous() for k, v in state.items()
            }
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"meta": json.dumps(meta)})


def load_checkpoint(path: Path, networks: Networks, optimisers: Optimisers) -> dict:
    """Load a checkpoint into networks and optimisers, in place; return its ``meta``.

    Learning rates are not stored: the loop sets them at every step.

    Raises: ValueError where the file is damaged or was written by networks of another shape.
    """
    try:
        with safe_open(path, "pt") as f:
            meta = json.loads(f.metadata()["meta"])
            tensors = {key: f.get_tensor(key) for key in f.keys()}
        for name, network in networks.items():
            network.load_state_dict(under(tensors, f"network/{name}/"))
        for name, optimiser in optimisers.items():
            state = {}
            for key, value in under(tensors, f"optimiser/{name}/").items():
                index, entry = key.split("/")
                state.setdefault(int(index), {})[entry] = value
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    except Exception as error:
        raise ValueError(
            f"{path}: not a checkpoint of these networks ({error}); delete it to train from the start"
        ) from error
    return meta


def under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the entries whose key starts with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
