"""FLOP and bytes of a training step; the roofline."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from toys import trained

from medsynth_lib.profiling.fake import fake_tensors
from medsynth_lib.profiling.ledger import Training
from medsynth_lib.profiling.phases import phase
from medsynth_lib.profiling.roofline import Work, attainable, by_phase, least_seconds, operations


def test_work_by_hand():
    """8 -> 4 on a batch of 3: a product forward and one backward, for the weights; a view moves nothing."""
    products = by_phase(operations(lambda: trained(nn.Linear(8, 4, bias=False), torch.rand(3, 8), optimiser=None)))
    assert products["flop"].to_dict() == {"forward": 2 * 3 * 8 * 4, "backward": 2 * 3 * 8 * 4}
    x, y = torch.rand(10, 10), torch.rand(100)

    def step():
        with phase("sum"):
            assert x.device.type  # a question, and reserved memory: nothing moves
            return torch.empty_like(y), x.view(100) + y

    moved = by_phase(operations(lambda: Training(step, {}, {}, {})))
    assert moved.loc["sum", ["flop", "bytes"]].tolist() == [0, 3 * 400]


def test_bytes_of_a_copy_of_zeros_and_of_an_expanded_tensor():
    """10 x 10 numbers, 400 bytes a block. What is only written is not read; an expanded row is in memory once."""
    x, y, row = torch.rand(10, 10), torch.rand(10, 10), torch.rand(1, 10)

    def step():
        with phase("copy"):
            x.copy_(y)
        with phase("copy of a row"):
            x.copy_(row.expand(10, 10))
        with phase("zero"):
            x.zero_()
        with phase("add"):
            return row.expand(10, 10) + y

    moved = by_phase(operations(lambda: Training(step, {}, {}, {})))["bytes"].to_dict()
    assert moved == {"copy": 2 * 400, "copy of a row": 40 + 400, "zero": 400, "add": 40 + 2 * 400}


@pytest.mark.parametrize("foreach", [False, True])
def test_bytes_of_operations_on_lists_and_of_given_outputs(foreach):
    """`_foreach` operations return nothing, and what is only written into is not read."""
    x, y, out = torch.rand(10, 10), torch.rand(10, 10), torch.empty(10, 10)

    def step():
        with phase("into"):
            torch.add(x, y, out=out)
        with phase("lists"):
            if foreach:
                torch._foreach_mul_([x, y], 2.0)
            else:
                x.mul_(2.0)
                y.mul_(2.0)
        with phase("like"):
            return torch.zeros_like(x)

    moved = by_phase(operations(lambda: Training(step, {}, {}, {})))["bytes"].to_dict()
    assert moved == {"into": 3 * 400, "lists": 4 * 400, "like": 400}


def test_the_step_that_is_counted_has_its_optimisers_state():
    """Adam makes its moments in the first step, as zeros; of the second all is counted, and nothing of the first."""
    make = lambda: trained(nn.Linear(8, 4), torch.rand(3, 8))  # noqa: E731
    with fake_tensors(), Work() as first:
        make().step()
    assert "aten.zeros_like" in [name for _, name, *_ in first.operations]
    names = operations(make)["name"].tolist()
    assert "aten.zeros_like" not in names and names.count("aten.addcdiv_") == 2  # one a parameter


def test_roofline():
    assert attainable(2.0, 100.0, 10.0) == 20 and attainable(50.0, 100.0, 10.0) == 100
    assert attainable(np.array([1.0, 1e9]), 100.0, 10.0).tolist() == [10, 100]


def test_a_step_waits_for_each_operation_in_turn():
    """A product of 400 FLOP and 40 bytes, an addition of 0 and 100: alone they take 4 and 10 s, not max(4, 14) together."""
    step = pd.DataFrame({"flop": [400, 0], "bytes": [40, 100]})
    assert least_seconds(step, 100.0, 10.0).tolist() == [4.0, 10.0]
