"""Walks of lesson 07 on a domain whose factors are linear in the code: every answer is known."""

import numpy as np
import pandas as pd
import pytest
import torch

from medsynth_lib.evaluation import latent
from medsynth_lib.experiments import latent_walks as walks

D = 8
WEIGHTS = torch.zeros(2, D)
WEIGHTS[0, 0], WEIGHTS[1, 1] = 1.0, 0.5
DOSES = torch.linspace(-2, 2, 5)


class LinearDomain:
    """Factor 1 is element 0 of the code, factor 2 half of element 1; volumes cannot be measured where element 2 is above 1."""

    modality, names = "ct", ("lung", "fat")
    networks = {}

    def __init__(self):
        self.population = pd.DataFrame({"lung": [0.0, 1.0], "fat": [1.0, 0.0]})

    def measured_codes(self, z):
        y = z @ WEIGHTS.T
        return torch.where(z[..., 2:3] > 1, torch.nan, y)

    def codes(self, cubes):
        return torch.stack([torch.full((D,), float(cube.mean())) for cube in cubes])

    def standardised(self, table):
        return torch.tensor(table.to_numpy(), dtype=torch.float32)

    def generate(self, z):
        return z[:, :1].reshape(-1, 1, 1, 1, 1).expand(-1, 1, 2, 2, 2)

    def masks(self, cube):
        inside = cube[0] > 0
        return {"lung": inside, "fat": ~inside}


@pytest.fixture(scope="module")
def sample():
    return walks.sample_factors(LinearDomain(), 60, D, seed=0)


@pytest.fixture(scope="module")
def sets(sample):
    cubes = [torch.full((1, 2, 2, 2), v) for v in (0.1, 0.2)]
    return walks.training_sets(LinearDomain(), cubes, sample, None, torch.tensor([True, False]))


def test_a_sample_is_that_of_its_seed_and_says_who_was_measured(sample):
    z, y, usable = sample
    assert torch.equal(z, torch.randn(60, D, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(usable, z[:, 2] <= 1) and torch.equal(y[usable], z[usable] @ WEIGHTS.T)


def test_sets_hold_what_could_be_measured(sample, sets):
    assert list(sets) == ["generated", "encoded"]
    assert len(sets["generated"][0]) == int(sample[2].sum()) and len(sets["encoded"][0]) == 1
    few = sample[0], sample[1], torch.arange(60) < D // 2 - 1
    domain, truth = LinearDomain(), torch.ones(2, 2)
    found = walks.training_sets(domain, [torch.zeros(1, 2, 2, 2)] * 2, few, truth, torch.tensor([True, True]))
    assert list(found) == ["encoded", "true factors"] and torch.equal(found["true factors"][1], truth)


def test_directions_of_a_linear_generator_are_found(sets):
    base = {"generated": sets["generated"]}
    models, table = walks.fit_directions(base, ("lung", "fat"))
    assert torch.allclose(models["generated"].weights, WEIGHTS, atol=1e-3)
    assert table[""].tolist()[-1] == "ridge, chosen on all" and table["lung"][:3].tolist() == pytest.approx([1, 1, 1])
    kinds = walks.kinds_of_directions(base, models)
    assert list(kinds) == ["plain, generated", "orthogonalised, generated", "joint, generated"]
    assert torch.allclose(kinds["orthogonalised, generated"][1] @ WEIGHTS.T, torch.eye(2), atol=1e-3)
    both = walks.kinds_of_directions(
        base | {"encoded": base["generated"]}, models | {"encoded": models["generated"]}, False
    )
    assert list(both)[3:] == ["plain, encoded"]


def test_the_learning_curve_ends_where_the_held_out_fifth_begins():
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(50, D, generator=draw)
    table = walks.learning_curve(z, z @ WEIGHTS.T + 0.01 * torch.randn(50, 2, generator=draw))
    assert table.index.tolist() == [0.5, 1.0, 2.0, 4.0]  # 4, 8, 16 and 32 of 40 codes; 64 are too many
    assert table["held out, ridge 0"].iloc[-1] > 0.99 and table["fitted, ridge 0"].iloc[0] == pytest.approx(1, abs=1e-3)


def test_walks_of_a_linear_generator_keep_their_promise(sample, sets):
    models, _ = walks.fit_directions({"generated": sets["generated"]}, ("lung", "fat"))
    kinds = walks.kinds_of_directions({"generated": sets["generated"]}, models)
    starts = walks.starting_codes(sample, 5)
    assert (starts[:, 2] <= 1).all() and len(walks.starting_codes((sample[0], None, sample[2] & False), 5)) == 5
    walked = walks.measure_walks(LinearDomain(), kinds, starts, DOSES)
    y = walked["plain, generated"]
    assert y.shape == (2, 5, 5, 2)
    assert torch.allclose(y[0, :, :, 0] - y[0, :, 2:3, 0], DOSES.expand(5, 5), atol=1e-2)
    table, counted = walks.monotonicity_table(walked, ("lung", "fat"), DOSES)
    assert (
        table.loc["plain, generated", "lung"] == pytest.approx(1)
        and counted.loc["plain, generated", "fat"] == "1.00 (5 of 5)"
    )
    rated = walks.purity_table(walked, kinds, DOSES)
    assert rated.loc["plain, generated", "purity of the mean"] == pytest.approx(1, abs=1e-2)
    assert (
        rated.loc["plain, generated", "response"] == pytest.approx(1, abs=1e-2) and rated["starts"].tolist() == [5] * 3
    )
    step = rated.loc["plain, generated", "longest step of 1 SD / sqrt(d)"]
    assert step == pytest.approx(2 / D**0.5, abs=1e-2)  # two of element 1 for one of factor 2


def test_walks_that_break_are_counted_and_left_out():
    y = torch.zeros(2, 3, 5, 2)
    y[0, :, :, 0], y[1, :, :, 1] = DOSES, 2 * DOSES
    y[0, 0, 4, 1] = torch.nan
    assert walks.whole_walks({"a": y}) == {"a": ["2 of 3", "3 of 3"]}
    assert torch.equal(walks.entanglements({"a": y}, DOSES)["a"], torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert walks.purities({"a": y}, DOSES)["a"].isnan().tolist() == [True, False, False]


def test_rows_of_a_walk_carry_the_share_of_their_mask():
    codes = torch.tensor([[[1.0], [-1.0]], [[1.0], [-1.0]]]).expand(2, 2, D)
    rows = walks.walk_rows(LinearDomain(), codes)
    assert [(name, plane) for name, plane, _ in rows] == [("lung", "coronal"), ("fat", "coronal")]
    assert [text for *_, text in rows[0][2]] == ["100.00 %", "no lung"]


def test_the_cleanest_kind_needs_four_starts():
    table = pd.DataFrame({"starts": [3.0, 4.0, 6.0], "purity of one start": [0.9, 0.5, 0.6]}, ["a", "b", "c"])
    assert walks.cleanest(table) == "c" and walks.cleanest(table[:1]) == "a"
    each = {
        "c": torch.tensor([0.6, 0.7, 0.6, 0.7]),
        "a": torch.tensor([0.1, 0.2, 0.1, 0.2]),
        "b": torch.tensor([0.6] * 3 + [torch.nan]),
    }
    verdicts = walks.against_cleanest(each, "c")
    assert verdicts["told apart"].to_dict() == {"a": "yes", "b": "too few starts"}
    assert verdicts.loc["a", "purity higher by"] == pytest.approx(0.5)


def test_common_purities_leave_out_factors_that_a_kind_could_not_measure():
    matrices = {"a": torch.tensor([[1.0, 1.0], [0.0, 2.0]]), "b": torch.tensor([[torch.nan, 0.0], [1.0, 3.0]])}
    table = walks.common_purities(matrices, ("lung", "fat"))
    assert table.index.tolist() == ["fat"] and table.loc["fat"].tolist() == pytest.approx([1.0, 0.75])


def test_adding_a_vector_changes_what_it_should():
    starts = torch.zeros(4, D)
    starts[3, 2] = 5  # cannot be measured
    assert walks.mean_change(LinearDomain(), starts, torch.ones(D) / 2).tolist() == [0.5, 0.25]


class CodeIsVolume:
    """Eight voxels, each an element of the code; the encoder is wrong by half."""

    device = "cpu"
    networks = {"mean G^A": torch.nn.Identity(), "mean G^H": torch.nn.Unflatten(1, (1, 8, 1, 1))}

    def codes(self, cubes):
        return torch.stack(cubes).flatten(1) / 2

    def generate(self, z):
        return self.networks["mean G^H"](z)


def test_an_optimised_code_recovers_better_and_the_gain_is_shown(monkeypatch):
    monkeypatch.setattr(walks, "ssim", lambda a, b: 0.5)  # whose window is larger than eight voxels
    volume = torch.linspace(-0.8, 0.8, D).view(1, D, 1, 1)
    images, (encoded, optimised) = walks.recover_twice(CodeIsVolume(), volume, 60)
    assert [name.split(",")[0] for _, name in images] == [
        "held out",
        "encoder",
        "its error",
        "optimised",
        "its error",
        "gained",
    ]
    assert encoded[0] == pytest.approx(float(volume.abs().mean()) / 2) and optimised[0] < encoded[0] / 3
    assert encoded[1] < optimised[1] and encoded[3] == pytest.approx(float(volume.norm()) / 2 / D**0.5)
    error = (volume[0] / 2).abs()
    assert torch.allclose(images[2][0], 4 * error - 1)


def test_the_bound_of_a_perfect_reader_is_high_and_of_a_blind_one_low():
    class Reader(torch.nn.Module):
        def __init__(self, right):
            super().__init__()
            self.right = right

        def forward(self, x):
            return (x[:, :2] if self.right else -x[:, :2]), torch.full((len(x), 2), -4.0)

    networks = {"G^A": torch.nn.Linear(D, D, bias=False), "G^L": torch.nn.Identity()}
    torch.nn.init.eye_(networks["G^A"].weight)
    basis = torch.eye(D)[:2]
    value, error = walks.mean_bound(networks | {"Q": Reader(True)}, basis)
    assert value == pytest.approx(0.5 * (1 + 4) * 2) and error == pytest.approx(0, abs=1e-6)
    assert walks.mean_bound(networks | {"Q": Reader(False)}, basis)[0] < -10
    assert np.isfinite(latent.purity(torch.eye(2)))
