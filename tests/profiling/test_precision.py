"""A GPU's precisions and checkpointing, on the CPU."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from toys import FLOAT, small_hagan, trained

from medsynth_lib.profiling.ledger import account
from medsynth_lib.profiling.planner import plan
from medsynth_lib.profiling.precision import PRECISIONS, checkpoint_blocks, set_precision

ONE = FLOAT  # the gradient of the loss, 1.0


@pytest.mark.parametrize("precision", PRECISIONS[:2])
def test_activations_in_autocast(precision):
    """On a GPU convolutions run in bfloat16 and norms in single precision: what lies between two of them is kept in both."""

    def make():
        network = nn.Sequential(
            nn.Conv3d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv3d(8, 1, 3, padding=1)
        )
        set_precision(network, precision)
        return trained(network, torch.rand(2, 1, 16, 16, 16), optimiser=None)

    x, y = 2 * 16**3, 2 * 8 * 16**3  # numbers of the input, and of what each of the first three layers makes
    single = FLOAT * (y + 2 * 2 * 2) + FLOAT * y  # the norm's input, a mean and a deviation a group; ReLU's output
    half = 2 * (x + 8 * 27) + 2 * (
        y + 8 * 27
    )  # the convolutions' inputs and weights: copies; in fp32 all is there already
    report = account(make)
    assert report.timeline["activations"].max() == single + ONE + (half if precision == "bf16 autocast" else 0)
    assert report.parts["parameters"] == FLOAT * (2 * 8 * 27 + 8 + 1 + 2 * 8)


def test_single_precision_of_a_gpus_autocast():
    """Operations that a GPU's autocast makes in single precision, as functions and as methods; others stay in half."""

    class Network(nn.Module):
        def forward(self, x):
            x = x.bfloat16()
            assert (2 * x).dtype == torch.bfloat16
            found = [x.softmax(1), torch.softmax(x, 1), nn.functional.softmax(x, 1)]
            found += [x**2, 2**x, 1 / x, x.exp(), x.rsqrt(), x.log1p()]
            assert all(v.dtype == torch.float32 for v in found)
            return x

    network = Network()
    network.weight = nn.Parameter(torch.ones(1))
    set_precision(network, "bf16 autocast")
    assert network(torch.rand(2, 3)).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_hagan_in_other_precisions(precision):
    report = plan(small_hagan, 32, 1, precision)
    assert report.kept == 0 and report.peak > report.parts["parameters"] > 0
    weights = sum(p.numel() for network in small_hagan().networks.values() for p in network.parameters())
    assert report.parts["parameters"] == weights * (FLOAT // 2 if precision == "16-bit" else FLOAT)


def test_no_block_with_spectral_norm_is_checkpointed():
    """A second forward pass would move its state once more than the plain step does."""

    class Block(nn.Module):
        def __init__(self, conv):
            super().__init__()
            self.conv = conv

    network = nn.Sequential(Block(spectral_norm(nn.Conv3d(1, 4, 3))), Block(nn.Conv3d(4, 1, 3)))
    assert checkpoint_blocks(network) == 1
    pair = nn.Sequential(Block(spectral_norm(nn.Conv3d(1, 1, 1))), Block(nn.Conv3d(1, 1, 1)))
    assert checkpoint_blocks(Block(pair)) == 1
