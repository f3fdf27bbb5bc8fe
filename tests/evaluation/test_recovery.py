"""Recovery through the encoder: scores, bounds, sub-volumes in their order, Dice of structures, statistics of codes, lesions."""

import numpy as np
import pytest
import torch

from medsynth_lib.data.preparation.cubes import CubeContract, Cubes, LesionCubes
from medsynth_lib.data.simulation.atlas import STRUCTURES
from medsynth_lib.data.simulation.dataset import simulated_dataset
from medsynth_lib.data.simulation.subject import make_subject
from medsynth_lib.evaluation import image
from medsynth_lib.evaluation.hagan_inference import decode_in_parts, encode, sample
from medsynth_lib.evaluation.recovery import (
    GROUPS,
    code_statistics,
    compare_scores,
    decode_codes,
    decode_features,
    encode_volumes,
    expected_statistics,
    foreground,
    mean_cosine,
    mean_structure_dice,
    nearest,
    pick_codes,
    recovery_and_bounds,
    recovery_errors,
    recovery_scores,
    recovery_summary,
    recovery_table,
    resampling_dice,
    structure_dice,
    structure_voxels,
    up_sampled,
)
from medsynth_lib.models.hagan import networks
from medsynth_lib.training.hagan import features, low_resolution

SIZE, DEPTH = 32, 8


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    made = networks(SIZE, latent=16, c=4, fraction=DEPTH / SIZE)
    return made | {f"mean {name}": made[name] for name in ("G^A", "G^H")}


# -- scores --------------------------------------------------------------------------------------------------------------------


def test_nmse_of_black_is_1_and_of_a_scaled_image_the_square_of_what_lacks():
    target = noise(4, 5, 6) + 1
    assert image.nmse(torch.zeros(4, 5, 6), target) == pytest.approx(1)
    assert image.nmse(target, target) == 0
    assert image.nmse(0.7 * target, target) == pytest.approx(0.09, rel=1e-5)
    with pytest.raises(ValueError, match="black"):
        image.nmse(target, torch.zeros(4, 5, 6))


def test_nmse_looks_inside_the_mask_alone_and_does_not_hear_the_units():
    target, guess = noise(4, 5, 6) + 1, noise(4, 5, 6, seed=1) + 1
    mask = torch.zeros(4, 5, 6, dtype=torch.bool)
    mask[1:3] = True
    assert image.nmse(1000 * guess, 1000 * target, mask) == pytest.approx(image.nmse(guess, target, mask), rel=1e-5)
    assert image.nmse(torch.where(mask, guess, 9), target, mask) == image.nmse(guess, target, mask)


def test_nmse_and_psnr_differ_by_the_energy_of_the_target():
    real, guess = noise(1, 16, 16, 16), noise(1, 16, 16, 16, seed=1)
    scores = recovery_scores(guess, real, np.ones((16, 16, 16), bool))
    energy = float(((real.double() + 1) / 2).square().mean())
    assert -10 * np.log10(scores["nmse"] * energy) == pytest.approx(scores["psnr"], abs=1e-4)


def test_masked_and_whole_scores_are_the_librarys():
    real, guess = noise(1, 16, 16, 16), noise(1, 16, 16, 16, seed=1)
    mask = np.zeros((16, 16, 16), bool)
    mask[4:9] = True
    scores, v, w = recovery_scores(guess, real, mask), (guess + 1) / 2, (real + 1) / 2
    for name in ("ssim", "nmse", "psnr"):
        score = getattr(image, name)
        assert scores[name] == pytest.approx(score(v, w, mask)) and scores[f"whole {name}"] == pytest.approx(
            score(v, w)
        )
        assert scores[name] != pytest.approx(scores[f"whole {name}"], rel=1e-3)
    perfect = recovery_scores(real, real, mask)
    assert (perfect["ssim"], perfect["nmse"], perfect["psnr"]) == (pytest.approx(1), 0, float("inf"))


def test_the_bodys_mask_holds_its_lungs_and_neither_air_nor_table():
    chest = torch.full((1, 24, 24, 24), -1.0)
    chest[0, 4:20, 4:20] = 0.3  # soft tissue
    chest[0, 8:12, 8:12, 4:] = -0.8  # a lung, open at the top of the image
    chest[0, :, 22] = 0.3  # the table
    mask = foreground(chest, "ct")
    assert mask[4:20, 4:20].all() and mask.sum() == 16 * 16 * 24


def test_the_brains_mask_is_what_is_not_background():
    brain = torch.full((1, 8, 8, 8), -1.0)
    brain[0, 2:5] = -0.5
    assert foreground(brain, "t1").sum() == 3 * 64 and foreground(brain, "t1")[2:5].all()


def test_tables_are_averaged_with_one_digit_of_dB_and_three_of_the_rest():
    real, mask = noise(2, 1, 16, 16, 16), np.ones((16, 16, 16), bool)
    tables = {
        "half": recovery_table(0.5 * real, real, [mask] * 2),
        "less": recovery_table(0.4 * real, real, [mask] * 2),
    }
    means, text = recovery_summary(tables)
    assert means.loc["half", "psnr"] == pytest.approx(tables["half"]["psnr"].mean())
    assert text.loc["half", "psnr"] == f"{tables['half']['psnr'].mean():.1f} ± {tables['half']['psnr'].std():.1f}"
    assert len(text.loc["half", "ssim"]) == len("0.000 ± 0.000") and list(text.index) == ["half", "less"]


def test_a_smaller_error_is_better_in_every_score():
    real, mask = noise(6, 1, 16, 16, 16), np.ones((16, 16, 16), bool)
    good, poor = (recovery_table(real + k * noise(6, 1, 16, 16, 16, seed=1), real, [mask] * 6) for k in (0.1, 0.3))
    p = {score: float(text.split("p = ")[1]) for score, text in compare_scores(good, poor).items()}
    assert set(p) == {"ssim", "nmse", "psnr"} and max(p.values()) < 1e-6
    assert compare_scores(good, poor)["nmse"].startswith("-") and compare_scores(good, poor)["psnr"].startswith("+")
    assert min(float(text.split("p = ")[1]) for text in compare_scores(poor, good).values()) > 0.999


# -- bounds --------------------------------------------------------------------------------------------------------------------


def test_up_sampling_keeps_every_fourth_voxel_and_ramps():
    x = noise(2, 1, 32, 32, 32)
    again = up_sampled(low_resolution(x))
    assert again.shape == x.shape and torch.allclose(again[..., ::4, ::4, ::4], x[..., ::4, ::4, ::4], atol=1e-6)
    ramp = torch.arange(32.0)[:, None, None] + 2 * torch.arange(32.0)[:, None] - torch.arange(32.0)
    inner = (slice(None), slice(None), *[slice(0, 29)] * 3)  # from the first to the last kept voxel
    assert torch.allclose(up_sampled(low_resolution(ramp[None, None]))[inner], ramp[None, None][inner], atol=1e-4)


def test_the_nearest_training_volume_is_itself():
    train = noise(6, 1, 4, 4, 4)
    assert torch.equal(nearest(train[[4, 1]] + 0.01, train), train[[4, 1]])


@pytest.mark.parametrize("nearer", [0, 1])
def test_the_nearest_is_found_where_norms_hide_the_difference(nearer):
    """Squared distances of 0.0064 and 0.0049, but |a|^2 + |b|^2 - 2 ab in single precision has steps of 0.0078 at 1.1e5."""
    query = noise(1, 1, 48, 48, 48).sign()
    train = query.repeat(2, 1, 1, 1, 1)
    train[nearer, 0, 0, 0, 0] += 0.07
    train[1 - nearer, 0, 0, 0, 0] += 0.08
    assert torch.equal(nearest(query, train), train[nearer : nearer + 1])


# -- through the encoder -------------------------------------------------------------------------------------------------------


def test_the_code_is_e_g_of_the_features_of_all_sub_volumes(nets):
    x = noise(2, 1, SIZE, SIZE, SIZE)
    with torch.no_grad():
        parts = [nets["E^H"](part) for part in x.split(DEPTH, 2)]
        assert torch.equal(encode(nets["E^H"], nets["E^G"], x, DEPTH), nets["E^G"](torch.cat(parts, 2)))


@torch.no_grad()
def test_sub_volumes_are_independent_and_keep_their_order(nets):
    """A change in one sub-volume changes its own features, and its own part of a decoding in parts, and nothing else."""
    x = noise(1, 1, SIZE, SIZE, SIZE)
    changed = x.clone()
    changed[:, :, DEPTH : 2 * DEPTH] *= -1
    a, b = (features(nets["E^H"], v, DEPTH) for v in (x, changed))
    differs = (a != b).flatten(3).any(3)[0].any(0)
    assert differs.tolist() == [False] * 2 + [True] * 2 + [False] * 4  # of S/4 = 8 slices, in sub-volumes of two
    again, changed = (decode_in_parts(nets["G^H"], v, DEPTH) for v in (a, b))
    assert (again != changed)[0, 0].flatten(1).any(1).tolist() == [DEPTH <= k < 2 * DEPTH for k in range(SIZE)]
    assert torch.equal(again[:, :, :DEPTH], nets["G^H"](nets["E^H"](x[:, :, :DEPTH])))


@torch.no_grad()
def test_decoding_in_parts_is_the_whole_where_the_part_is_the_whole(nets):
    z = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    a = nets["G^A"](z)
    assert torch.equal(decode_in_parts(nets["G^H"], a, SIZE), sample(nets["G^A"], nets["G^H"], z))
    assert not torch.allclose(decode_in_parts(nets["G^H"], a, DEPTH), sample(nets["G^A"], nets["G^H"], z), atol=1e-3)


def test_codes_and_recovered_volumes_do_not_depend_on_how_many_go_together(nets):
    x = noise(5, 1, SIZE, SIZE, SIZE)
    codes = encode_volumes(nets, x, DEPTH)
    assert torch.allclose(codes[4], encode_volumes(nets, x[4:], DEPTH)[0], atol=1e-5)
    again = decode_codes(nets, codes)
    assert torch.equal(again, decode_codes(nets, codes, average=True))  # here the mean is the generator itself
    errors = recovery_errors(nets, x, DEPTH)
    assert errors == pytest.approx((again - x).abs().mean((1, 2, 3, 4)).numpy(), abs=1e-5)


def test_every_way_back_and_every_bound_has_the_shape_of_the_volumes(nets):
    x, train = noise(2, 1, SIZE, SIZE, SIZE), noise(3, 1, SIZE, SIZE, SIZE, seed=1)
    z = encode_volumes(nets, x, DEPTH)
    found = recovery_and_bounds(nets, x, z, train, DEPTH)
    assert all(v.shape == x.shape for v in found.values()) and "from the code, running mean" not in found
    assert torch.equal(found["from the code"], decode_codes(nets, z))
    assert torch.equal(found["features alone, in parts (eq. 6)"], decode_features(nets, x, DEPTH))
    assert torch.equal(found["mean training volume"][1], train.mean(0))
    assert torch.equal(found["X^L up-sampled"][..., ::4, ::4, ::4], x[..., ::4, ::4, ::4])
    other = networks(SIZE, latent=16, c=4, fraction=DEPTH / SIZE)["G^H"]
    assert "from the code, running mean" in recovery_and_bounds(nets | {"mean G^H": other}, x, z, train, DEPTH)


# -- structures ----------------------------------------------------------------------------------------------------------------


def test_dice_of_identity_is_1_of_absence_nan_and_groups_hide_a_swap():
    labels = np.zeros((4, 4, 4), int)
    putamen, pallidum = STRUCTURES.index("putamen"), STRUCTURES.index("pallidum")
    labels[0], labels[1] = putamen, pallidum
    same = structure_dice(labels, labels)
    assert same["putamen"] == same["pallidum"] == same["putamen + pallidum"] == 1 and np.isnan(same["thalamus"])
    swapped = structure_dice(labels, np.where(labels > 0, putamen + pallidum - labels, 0))
    assert swapped["putamen"] == swapped["pallidum"] == 0 and swapped["putamen + pallidum"] == 1
    assert set(same) == {*STRUCTURES[1:], *GROUPS}


def test_means_over_volumes_leave_out_what_a_volume_lacks():
    a, b = np.zeros((4, 4, 4), int), np.zeros((4, 4, 4), int)
    thalamus, putamen = STRUCTURES.index("thalamus"), STRUCTURES.index("putamen")
    a[0], b[0], b[1] = putamen, putamen, thalamus
    dice = mean_structure_dice([a, b], [a, np.zeros_like(b)])
    assert dice["putamen"] == 0.5 and dice["thalamus"] == 0 and np.isnan(dice["pallidum"])
    voxels = structure_voxels([a, b])
    assert voxels["putamen"] == voxels["putamen + pallidum"] == 16 and voxels["thalamus"] == 8
    assert list(voxels.index) == list(dice.index)


@pytest.mark.slow
def test_resampling_costs_small_structures_most_and_less_on_a_finer_grid():
    person = make_subject(3, (80, 80, 52), 3.0, tumour=False)
    coarse, fine = (resampling_dice(person, CubeContract("t1", size)) for size in (32, 128))
    big, small = "cerebral white matter", "pallidum"
    assert coarse[small] < coarse[big] < 0.95 < fine[big] and coarse[small] < fine[small]


# -- codes and lesions ---------------------------------------------------------------------------------------------------------


def test_statistics_of_gaussian_codes_are_the_known_ones():
    n, d = 400, 64
    codes = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    s = code_statistics(codes)
    assert s["mean"] == pytest.approx(n**-0.5, rel=0.3) and s["sd"] == pytest.approx(1, abs=0.02)
    assert s["norm"] == pytest.approx(d**0.5, rel=0.02) and s["correlation"] == pytest.approx(n**-0.5, rel=0.1)
    assert s["directions"] == pytest.approx(1 / (1 / d + 1 / n), rel=0.05)


def test_statistics_see_an_offset_a_narrow_cloud_and_one_direction():
    draw = torch.Generator().manual_seed(0)
    line = 3 + 0.5 * torch.randn(300, 1, generator=draw) * torch.ones(1, 9)
    s = code_statistics(line)
    assert s["mean"] == pytest.approx(3, abs=0.1) and s["sd"] == pytest.approx(0.5, abs=0.05)
    assert s["correlation"] == pytest.approx(1) and s["directions"] == pytest.approx(1)


def test_what_is_expected_of_gaussian_codes_comes_out():
    codes = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    found, expected = code_statistics(codes), expected_statistics(*codes.shape)
    assert list(found.index) == list(expected.index)
    for name in ("sd", "norm", "directions"):
        assert found[name] == pytest.approx(expected[name], rel=0.03)


def test_codes_are_picked_in_four_ways():
    draw = torch.Generator().manual_seed(0)
    encoded, random = 3 + torch.randn(200, 8, generator=draw), torch.randn(200, 8, generator=draw)
    picked = pick_codes(encoded, random, 150)
    assert {len(z) for z in picked.values()} == {150} and torch.equal(picked["random"], random[:150])
    assert torch.equal(picked["half-way"][1], (encoded[1] + encoded[0]) / 2)
    assert picked["Gaussian of encoded"].mean() == pytest.approx(3, abs=0.1)
    assert picked["Gaussian of encoded"].std(0).mean() == pytest.approx(1, abs=0.1)
    one, two = (pick_codes(encoded, random, 9, seed)["Gaussian of encoded"] for seed in (1, 1))
    assert torch.equal(one, two)


def test_the_mean_cosine_knows_only_directions():
    codes = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert mean_cosine(codes, 3 * codes) == pytest.approx(1) and mean_cosine(codes, -codes) == pytest.approx(-1)
    assert mean_cosine(torch.eye(4), torch.eye(4).roll(1, 0)) == 0


def test_lesion_cubes_hold_labels_where_the_image_differs_from_its_healthy_twin(tmp_path):
    """The same person with and without a glioma: labels lie on the cube's grid, over what is different."""
    options = dict(counts=dict(test=1), shape=(50, 50, 33), spacing=4.8, sites=("A",))
    contract = CubeContract("t1", 32)
    sick = LesionCubes(simulated_dataset(**options, tumour=True, folder=tmp_path / "sick"), contract)
    twin = Cubes(simulated_dataset(**options, tumour=False, folder=tmp_path / "twin"), contract)
    for a, b in zip(sick, twin, strict=True):
        assert a["subject"] == b["subject"] and set(a["seg"].unique().tolist()) <= {0, 1, 2, 4}
        difference, lesion = (a["x"] - b["x"]).abs(), a["seg"] > 0
        assert difference[lesion].mean() > 3 * difference[~lesion].mean()
