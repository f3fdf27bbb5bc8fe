"""What can be counted of a network without data."""

from torch import nn


def count_parameters(network: nn.Module) -> int:
    """Count the numbers that a network can learn."""
    return sum(p.numel() for p in network.parameters())
