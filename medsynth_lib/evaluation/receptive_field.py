"""Which input voxels can change an output voxel: measured by gradient instead of counted by hand."""

import copy

import torch
from torch import nn

from medsynth_lib.models.pix2pix import Normalise


def positive_copy(network: nn.Module) -> nn.Module:
    """Copy a network in double precision, with positive weights and without instance norm.

    Positive weights cannot cancel, so the copy's gradient is nonzero wherever there is a path. Instance norm would couple
    every voxel with every other one through the volume's mean.
    """
    network = copy.deepcopy(network).double()
    for parameter in network.parameters():
        parameter.data = torch.rand_like(parameter) + 0.1
        parameter.data /= parameter[0].numel()  # keeps the signal's size, so that the sigmoid does not saturate
    for parent in network.modules():
        for name, child in parent.named_children():
            if isinstance(child, (Normalise, nn.InstanceNorm3d)):
                setattr(parent, name, nn.Identity())
    return network


def receptive_field(network: nn.Module, size: int = 160, channels: int = 2) -> tuple[int, int]:
    """Measure how many voxels along x one output voxel depends on.

    Neighbours differ in a strided network, so eight of them are measured. y and z are thin: the field is the same there.

    Args:
        network: a `positive_copy`.
        size: voxels along x of the test volume; must exceed the field.
        channels: of the network's input.

    Returns:
        The shortest and the longest field, in voxels.

    Raises:
        ValueError: the field reaches the border of the test volume.
    """
    x = torch.rand(1, channels, size, 8, 8, dtype=torch.float64, requires_grad=True)
    out = network(x)
    out = out[0] if isinstance(out, tuple) else out  # the discriminator returns its features, too
    row = out[0, 0, :, out.shape[3] // 2, out.shape[4] // 2]
    lengths = []
    for shift in range(8):
        (gradient,) = torch.autograd.grad(row[len(row) // 2 + shift], x, retain_graph=True)
        touched = gradient.abs().amax((0, 1, 3, 4)).nonzero().flatten()
        if touched[0] == 0 or touched[-1] == size - 1:
            raise ValueError(f"the receptive field is wider than the test volume of {size} voxels; enlarge size")
        lengths.append(int(touched[-1] - touched[0]) + 1)
    return min(lengths), max(lengths)
