"""A slab on its own against the whole volume: nothing differs where the slab is the whole, and cuts are found where they are."""

import pandas as pd
import pytest
import torch

from medsynth_lib.evaluation.slabs import group_statistics, judge_slabs, rightly_judged, slab_and_whole, slab_mismatch
from medsynth_lib.models.hagan import networks

SIZE, DEPTH, LATENT = 32, 16, 4


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    made = networks(SIZE, latent=LATENT, c=2, fraction=DEPTH / SIZE)
    return made | {f"mean {name}": made[name] for name in ("G^A", "G^H")}


@pytest.fixture(scope="module")
def codes():
    return torch.randn(2, LATENT, generator=torch.Generator().manual_seed(0))


def test_group_statistics_are_those_that_the_norm_removes(nets, codes):
    with torch.no_grad():
        a = nets["G^A"](codes[:1])
        up, conv, norm, _ = nets["G^H"].first
        normalised = norm(conv(up(a)))
    mean, sd = group_statistics(nets["G^H"], a)
    groups = conv(up(a)).unflatten(1, (norm.num_groups, -1))
    again = (groups - mean[:, None, None, None, None]) / sd[:, None, None, None, None]
    weight, bias = (p[:, None, None, None] for p in (norm.weight, norm.bias))
    assert torch.allclose(again.flatten(1, 2) * weight + bias, normalised, atol=1e-3)


def test_a_slab_that_is_the_whole_has_no_mismatch(nets, codes):
    slab, whole = slab_and_whole(nets, codes[:1], 0, SIZE)
    assert torch.equal(slab, whole) and slab.shape == (1, 1, SIZE, SIZE, SIZE)
    table = slab_mismatch(nets, codes, SIZE)
    assert table.index.tolist() == [0] and table["inner slices"][0] == 0 == table["shift of the mean"][0]
    assert table["ratio of the sd"][0] == pytest.approx(1)


def test_the_mismatch_of_two_codes_is_measured_slice_by_slice(nets, codes):
    table = slab_mismatch(nets, codes, DEPTH)
    assert table.index.tolist() == [0, 4, 8, 12, 16] and (table["inner slices"] > 0).all()
    errors = [torch.sub(*slab_and_whole(nets, z[None], 4, DEPTH)).square().mean((0, 1, 3, 4)) for z in codes]
    square = torch.stack(errors).mean(0)
    assert table.loc[4, "inner slices"] == pytest.approx(float(square[3:-3].mean().sqrt()), rel=1e-5)
    assert table.loc[4, "3 slices at a cut"] == pytest.approx(
        float(square[[0, 1, 2, -3, -2, -1]].mean().sqrt()), rel=1e-5
    )
    (first,) = [torch.stack([torch.sub(*slab_and_whole(nets, z[None], 0, DEPTH)) for z in codes])]
    border = first.square().mean((0, 1, 2, 4, 5))[-3:].mean().sqrt()  # slice 0 is the volume's own border, no cut
    assert table.loc[0, "3 slices at a cut"] == pytest.approx(float(border), rel=1e-5)


def test_the_judge_sees_every_start_and_takes_turns(nets, codes):
    real = torch.rand(3, 1, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    table = judge_slabs(nets, real, codes, DEPTH)
    assert table.index.tolist() == [0, 4, 8, 12, 16]
    assert list(table) == ["real", "generated as slab", "cut from the whole"]
    with torch.no_grad():
        fourth = nets["D^H"](real[:1, :, 12:28], 12 / (SIZE - DEPTH))  # three volumes: the first one's turn again
    assert table.loc[12, "real"] == pytest.approx(float(fourth[0, 0]), abs=1e-4)


def test_real_slabs_are_right_above_0_and_others_below():
    logits = pd.DataFrame({"real": [1.0, -1.0, 2.0, 3.0], "generated as slab": [-1.0, -2.0, 1.0, -3.0]})
    assert rightly_judged(logits).tolist() == [0.75, 0.75]
