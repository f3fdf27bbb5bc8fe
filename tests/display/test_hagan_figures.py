"""Figures of lessons 05 to 08: what is drawn is what was given, under the right name."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from medsynth_lib.display import hagan, memory, recovery, walks


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def labels(axis):
    return axis.get_legend_handles_labels()[1]


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# -- lesson 05 -----------------------------------------------------------------------------------------------------------------


def test_chests_are_shown_in_hu_and_brains_as_they_are():
    volume = torch.zeros(1, 8, 8, 8)
    chest = hagan.cube_grid({"a": hagan.all_planes(volume)}, "ct", "title").axes
    brain = hagan.cube_grid({"a": hagan.all_planes(volume), "b": hagan.all_planes(volume)}, "t1").axes
    assert [axis.get_title() for axis in chest[:3]] == ["sagittal", "coronal", "axial"]
    assert chest[0].images[0].get_array().max() == pytest.approx(-212) and chest[0].images[0].get_clim() == (-1024, 600)
    assert brain[0].images[0].get_array().max() == 0 and brain[0].images[0].get_clim() == (-1, 1)
    assert [brain[k].get_ylabel() for k in (0, 3)] == ["a", "b"]


def test_training_curves_have_a_line_a_loss_and_model_and_the_level_of_chance():
    columns = ("d", "g", "e_high", "e_ground", "tune_recovery_l1", "tune_d_real")
    history = pd.DataFrame({"step": [1, 2]} | {name: [1.0, 0.5] for name in columns})
    axes = hagan.training_curves({"live": history, "shipped": history}, "title").axes
    assert labels(axes[0]) == [
        "discriminators, live",
        "generator, live",
        "discriminators, shipped",
        "generator, shipped",
    ]
    chance = [float(line.get_ydata()[0]) for line in axes[0].lines[-2:]]
    assert chance == pytest.approx(
        [4 * np.log(2), 2 * np.log(2)]
    )  # D on real and fake, two of them; G on fake, two of them
    assert axes[3].get_ylabel() == "logit" and len(axes[2].lines) == 2


def test_slab_curves_draw_every_column_against_r():
    table = pd.DataFrame(
        {
            "inner slices": [1.0, 2.0],
            "3 slices at a cut": [3.0, 4.0],
            "shift of the mean": [5, 6],
            "ratio of the sd": [7, 8],
        },
        index=[0, 4],
    )
    axes = hagan.slab_curves({"brain": table, "chest": table + 1}).axes
    assert labels(axes[0])[:2] == ["brain, inner slices", "brain, 3 slices at a cut"]
    assert axes[0].lines[1].get_xdata().tolist() == [0, 4] and axes[0].lines[1].get_ydata().tolist() == [3, 4]
    assert axes[1].lines[0].get_ydata().tolist() == [5, 6] and axes[2].lines[1].get_ydata().tolist() == [8, 9]


def test_boxes_are_over_the_mean_of_the_real_volumes():
    real = pd.DataFrame({"lung_ml": [1.0, 3.0], "bone_ml": [10.0, 10.0]})
    figure = hagan.volume_boxes({"chest": {"real": real, "generated": 2 * real}, "brain": {"real": real}})
    axis = figure.axes[0]
    medians = [line.get_ydata()[0] for line in axis.lines[4:24:6]]  # two whiskers, two caps, median and outliers a box
    assert medians == [1.0, 1.0, 2.0, 2.0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["lung ml", "bone ml"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["real", "generated"]


def test_scatter_boxes_and_bars_name_their_panels():
    table = pd.DataFrame({"distance": [0.1, 0.2], "share": [0.5, 1.0]})
    (axis,) = hagan.neighbour_scatter({"brain (simulated)": {"generated": table}}).axes
    assert axis.get_title() == "brain (simulated)" and axis.collections[0].get_offsets().tolist() == [
        [0.1, 0.5],
        [0.2, 1.0],
    ]
    axes = hagan.similarity_boxes({"brain": {"real": [0.1, 0.2], "made": [0.3]}, "chest": {"real": [0.1]}}, 40).axes
    assert axes[0].get_title() == "brain, 40 pairs at most"
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["real", "made"]
    (axis,) = hagan.memory_bars(
        pd.DataFrame({"parameters": [1.0, 1.0], "inputs": [2.0, 4.0]}, ["1/8", "1/4"]), "MiB"
    ).axes
    assert [bar.get_width() for bar in axis.patches] == [1, 1, 2, 4] and axis.get_xlabel() == "MiB"


# -- lesson 06 -----------------------------------------------------------------------------------------------------------------


def test_masks_stand_beside_their_volumes_in_true_proportions():
    volume, mask = noise(1, 8, 8, 8), np.zeros((8, 8, 8), bool)
    mask[:, 4] = True
    axes = recovery.mask_pictures({"brain": (volume, mask, torch.tensor([1.0, 1.0, 2.0]))}).axes
    assert [axis.get_title() for axis in axes] == ["brain", "its mask"] and axes[0].get_aspect() == 2
    assert np.asarray(axes[1].images[0].get_array()).all()  # the coronal slice in the middle


def test_recovered_volumes_are_shown_in_the_window_s_unit():
    real = torch.zeros(1, 8, 8, 8)
    figure = recovery.recovered_volume(real, {"again": real + 0.5}, torch.ones(3), (-1000, 1000), "HU", "title")
    pictures = {axis.get_title(): axis.images[0] for axis in figure.axes[:3]}
    assert pictures["real"].get_array().max() == 0 and pictures["again"].get_array().max() == 500
    assert pictures["difference"].get_array().max() == 500 and pictures["difference"].get_clim() == (-1000, 1000)


def test_structures_are_sorted_by_size():
    table = pd.DataFrame({"voxels": [9.0, 2.0], "from the code": [0.9, 0.2]}, ["thalamus", "pallidum"])
    (axis,) = recovery.structure_plot(table, "title").axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["pallidum (2)", "thalamus (9)"]
    assert axis.lines[0].get_xdata().tolist() == [0.2, 0.9] and labels(axis) == ["from the code"]


def test_before_and_after_share_their_limits():
    before = pd.DataFrame({name: [1.0, 3.0, np.nan] for name in recovery.QUANTITIES})
    axes = recovery.before_and_after(before, {"X^L up-sampled": before + 1}).axes
    assert axes[0].get_xlim() == axes[0].get_ylim() == pytest.approx((0.85, 4.15))
    assert axes[0].get_xlabel() == "real: lung (ml)" and labels(axes[0]) == ["$X^L$ up-sampled"]
    assert recovery.common_limits([pd.Series([np.nan, 2.0])]) == (0.0, 1.0)


def test_code_panels_project_on_the_encoded_codes_own_axes():
    line = torch.linspace(-1, 1, 5)[:, None] * torch.tensor([[0.0, 3.0, 0.0]])
    axes = recovery.code_panels({"brain": {"random": noise(5, 3), "encoded, training": line}}, "title").axes
    x, y = axes[2].lines[1].get_data()
    assert np.ptp(x) == pytest.approx(6, abs=1e-5) and np.abs(y).max() < 1e-5
    assert axes[0].lines[1].get_ydata()[-1] == pytest.approx(float(line[:, 1].std()))
    assert axes[0].get_ylabel() == "brain\nsd over volumes"


# -- lesson 07 -----------------------------------------------------------------------------------------------------------------


def test_learning_curves_say_how_far_below_the_frame_they_go():
    names = ["fitted, ridge 0", "held out, ridge 0", "held out, chosen ridge"]
    table = pd.DataFrame([[1.0, -30.0, 0.1], [0.9, 0.5, 0.6]], [1.0, 2.0], names)
    axes = walks.learning_curves({"chests": table, "brains": table}).axes
    assert [text.get_text() for text in axes[0].texts] == ["-30"] and axes[0].get_ylim()[0] == -2
    assert labels(axes[0]) == names and axes[0].lines[1].get_ydata().tolist() == [-30.0, 0.5]


def test_responses_begin_at_0_and_whole_walks_are_counted():
    doses = torch.tensor([-1.0, 0.0, 1.0])
    y = torch.stack([0.5 * doses + 7, 0.5 * doses + 3, torch.full((3,), torch.nan)])[None, :, :, None]
    (axis,) = walks.dose_response({"plain": y}, ["lung"], doses, "simulated", "title").axes[:1]
    assert axis.get_title() == "lung\nwhole walks: 2 of 3"
    thick = [line for line in axis.lines if line.get_label() == "plain"]
    assert thick[0].get_ydata().tolist() == [-0.5, 0.0, 0.5]


def test_matrices_stand_above_each_other_on_one_scale():
    measured, foreseen = {"plain, encoded": 3 * torch.eye(2), "joint, encoded": torch.eye(2)}, torch.eye(2)
    whole = {name: ["5 of 6", "0 of 6"] for name in measured}
    figure = walks.entanglement_matrices(measured, dict.fromkeys(measured, foreseen), whole, ["lung", "fat"], "title")
    top, other, bottom = figure.axes[:3]
    assert top.get_title() == "plain\nencoded\nforeseen" and other.images[0].get_clim() == (-2, 2)
    assert [tick.get_text() for tick in bottom.get_yticklabels()] == ["lung 5 of 6", "fat 0 of 6"]
    assert {text.get_text() for text in bottom.texts} == {"3.00", "0.00"}


# -- lesson 08 -----------------------------------------------------------------------------------------------------------------


def parts(**values):
    return dict.fromkeys(memory.PARTS, 0.0) | values


@pytest.mark.slow
def test_the_timeline_stacks_parts_and_names_updates():
    rows = [parts(parameters=4.0) | {"phase": ""}, parts(parameters=4.0, activations=2.0) | {"phase": "D"}]
    rows += [parts(parameters=4.0, activations=1.0) | {"phase": "G"}]
    (axis,) = memory.memory_timeline(pd.DataFrame(rows), "title").axes
    assert [text.get_text() for text in axis.texts] == ["D", "G"] and labels(axis) == list(memory.PARTS)
    assert max(path.vertices[:, 1].max() for c in axis.collections for path in c.get_paths()) == 6
    assert axis.get_xlim() == (1, 3)


def test_the_largest_layers_stand_on_top():
    layers = pd.DataFrame({f"layer {k}": parts(activations=float(k)) | {"peak": float(k)} for k in range(1, 11)}).T
    axis = memory.layer_bars(layers, "title").axes[0]
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert len(names) == 8 and names[-1] == "layer 10" and axis.get_xlim()[1] == pytest.approx(10.5)


def test_fig_9_has_a_line_a_network_and_stars_where_the_paper_measured():
    table = pd.DataFrame({"HA-GAN": [3.0, 7.0], "WGAN": [2.0, 40.0]}, [32, 64])
    (axis,) = memory.card_memory(table, {64: 2.6}, "title").axes
    assert labels(axis) == ["HA-GAN", "WGAN", "HA-GAN, the paper's"]
    assert [line.get_linestyle() for line in axis.lines[:2]] == ["-", "--"]
    assert axis.lines[2].get_xdata().tolist() == [64] and axis.get_ylim()[1] == 80


def test_levers_say_what_they_change():
    (axis,) = memory.lever_bars(pd.Series({"multiplier 1/2": 200.0, "one graph at a time": 150.0, "worse": 300.0})).axes
    assert [text.get_text() for text in axis.texts] == ["200", "150\n-25%", "300\n+100%"]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["multiplier\n1/2", "one graph\nat a\ntime", "worse"]


def test_the_roofline_bends_where_arithmetic_takes_over():
    intensities = {"plain": pd.Series({"D": 1.0, "G": 100.0}), "lean": pd.Series({"D": 2.0})}
    (axis,) = memory.roofline_plot({"card": (1e12, 1e11)}, intensities, "title").axes
    roof, plain, lean = axis.lines[:3]
    assert roof.get_ydata().max() == 1e12 and plain.get_ydata().tolist() == [1e11, 1e12]
    assert lean.get_ydata().tolist() == [2e11] and [text.get_text() for text in axis.texts] == ["D, plain", "G, plain"]


def test_cost_curves_write_their_powers():
    table = pd.DataFrame({"use": ["training"] * 2, "S": [32, 64], "seconds": [1.0, 8.0], "bytes": [2.0, 16.0]})
    slopes = {"seconds": {"training": 1.0}, "bytes": {"training": 0.987}}
    axes = memory.cost_curves(table, slopes, [32, 64], "title").axes
    assert labels(axes[0]) == ["training: V^1.00"] and labels(axes[1]) == ["training: V^0.99"]
    assert axes[1].lines[0].get_ydata().tolist() == [2.0, 16.0]
