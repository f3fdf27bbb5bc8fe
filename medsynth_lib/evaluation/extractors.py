"""Extractors: from volumes to the features that scores of sets compare (HA-GAN paper, section IV-B).

The paper takes MedicalNet's ResNet-50, whose weights are not part of this course. Without them the encoder of a segmenter
serves: it has learnt the structures of the embedded data. Scores of two extractors are never compared.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import ResNet, SegResNet, resnet50
from torch import Tensor, nn

from medsynth_lib.data.preparation.contract import SavedContract
from medsynth_lib.evaluation.set_scores import Features
from medsynth_lib.files import DataError

TOGETHER = 4  # volumes that a network sees at a time


def extract(network: nn.Module, cubes: Tensor, contract: SavedContract) -> Features:
    """Extract the features of volumes.

    Args:
        network: a segmenter, whose coarsest features are taken, or a `ResNet` of `medicalnet`.
        cubes: volumes (n, 1, N, N, N) in [-1, 1].
        contract: by which they were prepared, or which a generator learned from.

    Returns:
        Features (n, d): of a segmenter mean and standard deviation over voxels of each channel; of a ResNet the mean.

    Raises:
        DataError: for another kind of network.
    """
    kind = next((kind for kind in READERS if isinstance(network, kind)), None)
    if kind is None:
        raise DataError(
            f"{type(network).__name__}: no features are known of such a network; give a segmenter or a ResNet."
        )
    network.eval()
    device = next(network.parameters()).device
    with torch.no_grad():
        values = [READERS[kind](network, part.to(device)).double().cpu().numpy() for part in cubes.split(TOGETHER)]
    return Features(np.concatenate(values), weights_hash(network), repr(contract))


def segmenter_features(network: SegResNet, cubes: Tensor) -> Tensor:
    """Return mean and standard deviation over voxels of the coarsest features (b, 2 channels)."""
    coarse, _ = network.encode(cubes)
    return torch.cat([coarse.mean((2, 3, 4)), coarse.std((2, 3, 4))], 1)


def resnet_features(network: ResNet, cubes: Tensor) -> Tensor:
    """Return features after global average pooling (b, 2048)."""
    return network(cubes)


READERS: dict[type[nn.Module], Callable[..., Tensor]] = {SegResNet: segmenter_features, ResNet: resnet_features}


def weights_hash(network: nn.Module) -> str:
    """Name a network by its weights: eight hexadecimal digits of their SHA-256."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    return found.hexdigest()[:8]


def medicalnet(path: Path | str) -> ResNet:
    """Load the paper's extractor, MedicalNet's ResNet-50, from its published file.

    Chen et al. 2019, arXiv:1904.00625.

    Args:
        path: of resnet_50.pth or resnet_50_23dataset.pth.

    Returns:
        The network without its last layer, in evaluation mode.

    Raises:
        DataError: for a missing file, or one with other weights.
    """
    network = resnet50(spatial_dims=3, n_input_channels=1, shortcut_type="B", bias_downsample=False, feed_forward=False)
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        weights = {name.removeprefix("module."): value for name, value in stored["state_dict"].items()}
        network.load_state_dict(weights)
    except Exception as error:  # a file of another kind fails in many ways
        raise DataError(
            f"{path}: not MedicalNet's ResNet-50 ({str(error).splitlines()[0]}); get resnet_50.pth from its authors."
        ) from error
    return network.eval()
