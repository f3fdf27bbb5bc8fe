"""The computer that a training runs on: device, precision, compilation, and the record of them beside a trained model."""

import os
import platform
from importlib.metadata import version
from typing import Any

import torch
from lightning_fabric import Fabric

PRECISIONS = ("32-true", "bf16-mixed")  # "16-mixed" would apply the scale of one network's loss to the next network's


def default_fabric() -> Fabric:
    """Choose one GPU where there is one, else the CPU.

    A Mac's MPS is not chosen: exact resume is promised on the CPU. MEDSYNTH_PRECISION sets the precision.
    """
    return Fabric(accelerator="cuda" if torch.cuda.is_available() else "cpu", devices=1, precision=precision())


def precision() -> str:
    """Read MEDSYNTH_PRECISION, "32-true" where it is not set.

    Raises:
        ValueError: for a precision that is not one of `PRECISIONS`.
    """
    wanted = os.environ.get("MEDSYNTH_PRECISION") or PRECISIONS[0]
    if wanted not in PRECISIONS:
        raise ValueError(f"MEDSYNTH_PRECISION is {wanted!r}; set it to {' or '.join(PRECISIONS)}")
    return wanted


def compiles() -> bool:
    """Read whether MEDSYNTH_COMPILE=1 asks for compiled networks: other rounding, other seconds."""
    return os.environ.get("MEDSYNTH_COMPILE") == "1"


def device_name(device: torch.device | None = None) -> str:
    """Name a GPU, or "CPU" with its architecture; None is the device of `default_fabric`."""
    on_gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else f"CPU {platform.machine()}"


def environment(device: torch.device, seconds: float) -> dict[str, Any]:
    """Describe what a training ran on, for environment.json.

    Args:
        device: of the training.
        seconds: that its last session took.
    """
    return dict(
        medsynth=version("medsynth"),
        torch=torch.__version__,
        python=platform.python_version(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        threads=torch.get_num_threads(),
        precision=precision(),
        compiled=compiles(),
        seconds_in_last_session=round(seconds, 1),
    )
