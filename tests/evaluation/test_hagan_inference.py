"""HA-GAN at inference: slabs give the whole volume, and only with the whole volume's statistics."""

import pytest
import torch

from medsynth_lib.evaluation.hagan_inference import sample, sample_by_slabs
from medsynth_lib.models import hagan as models
from medsynth_lib.models.hagan_lean import make_lean


@pytest.mark.parametrize("size, slices, lean", [(32, 1, False), (32, 3, True), (64, 4, True), (64, 16, False)])
def test_slabs_give_the_whole_volume(size, slices, lean):
    """Two passes over slabs of A equal one pass over all of it, within 1e-5, also where the last slab is smaller."""
    torch.manual_seed(0)
    common, high = models.Common(size, 16, 4), models.High(4)
    with torch.no_grad():
        high.first[2].weight.uniform_(0.5, 2)
        high.first[2].bias.uniform_(-1, 1)
    if lean:
        make_lean(high)
    z = torch.randn(2, 16)
    whole = sample(common, high, z)
    assert whole.std() > 0.02
    assert (sample_by_slabs(common, high, z, slices) - whole).abs().max() < 1e-5


def test_one_pass_over_slabs_would_not_do():
    """Each slab's own statistics, as in training, give another volume: the mismatch that the two passes mend."""
    torch.manual_seed(0)
    common, high = models.Common(32, 16, 4), models.High(4)
    a = common(torch.randn(1, 16))
    slabs = torch.cat([high(part) for part in a.split(1, 2)], 2)
    assert (slabs - high(a)).abs().max() > 0.01
