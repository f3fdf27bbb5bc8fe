"""Figures of lessons 01 to 04: each draws the numbers it was given, under the names that a reader looks for."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from medsynth_lib.data.files.manifest import Scan
from medsynth_lib.data.preparation.contract import normalise, nyul_landmarks
from medsynth_lib.display import adaptation, figures, preparation, slice_vae


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def labels(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


# -- slices ------------------------------------------------------------------------------------------------------------------


def sample_with_tumour():
    sample = dict(x=torch.rand(2, 5, 6, 7), y=torch.rand(1, 5, 6, 7), mask=torch.ones(1, 5, 6, 7) > 0)
    sample["mask"][0, 0] = False
    return sample | {"seg": torch.zeros(1, 5, 6, 7)}


def test_the_slice_goes_through_the_tumour():
    sample = sample_with_tumour()
    assert figures.tumour_slice(sample) == 3
    sample["seg"][0, 1, 1, 5] = 1
    assert figures.tumour_slice(sample) == 5
    assert figures.tumour_slice({k: v for k, v in sample.items() if k != "seg"}) == 3


def test_pictures_and_errors_share_the_slice():
    sample = sample_with_tumour()
    sample["seg"][0, 1, 1, 5] = 1
    made = [torch.rand(1, 5, 6, 7), torch.rand(1, 5, 6, 7)]
    pictures, errors = figures.synthesis_slices(sample, made)
    expected = [*sample["x"], sample["y"][0], made[0][0], made[1][0]]
    assert all((p == v[:, :, 5].T.numpy()).all() for p, v in zip(pictures, expected, strict=True))
    assert len(errors) == 2 and (errors[1][:, 0] == 0).all()
    assert np.allclose(errors[1][:, 1:], (made[1] - sample["y"])[0, 1:, :, 5].T)


def test_titles_stop_before_the_colour_bar():
    figure = figures.slice_grid([[np.eye(3), np.eye(3)]], colour_label="x")
    figures.title_each(figure, ["first", "second"])
    assert [axis.get_title() for axis in figure.axes] == ["first", "second", ""]


# -- lesson 01 ----------------------------------------------------------------------------------------------------------------


def test_montage_has_a_row_a_contrast_and_site(tmp_path):
    scans = {}
    for k, site in enumerate(("SIMA", "SIMB")):
        volume = np.zeros((6, 7, 10), np.float32)
        volume[2, 3, 8] = k + 1  # in the slice that is shown: the middle plus three
        path = tmp_path / f"{site}.nii.gz"
        nib.save(nib.Nifti1Image(volume + 0.01, np.eye(4)), path)
        scans[site] = [Scan(dict(subject="1", flair=path.name, t1=path.name), tmp_path)] * 2
    figure = preparation.site_montage(scans, ("t1", "flair"), "four rows")
    assert len(figure.axes) == 8
    assert [figure.axes[k].get_ylabel() for k in (0, 2, 4, 6)] == ["T1\nSIMA", "T1\nSIMB", "FLAIR\nSIMA", "FLAIR\nSIMB"]
    assert figure.axes[2].images[0].get_array()[3, 2] == pytest.approx(2.01)


def test_histograms_are_of_the_brain_after_each_method():
    generator = torch.Generator().manual_seed(0)
    scans = [torch.rand(1, 12, 12, 12, generator=generator) for _ in range(3)]
    scans[0][0, :6] = 0
    landmarks = nyul_landmarks(scans[:2])
    figure = preparation.normalisation_histograms({"A": scans[:2], "B": scans[2:]}, ["minmax", "nyul"], landmarks)
    assert [axis.get_title() for axis in figure.axes] == ["minmax", "nyul"]
    colours = [patch.get_edgecolor() for patch in figure.axes[0].patches]
    green, blue = (matplotlib.colors.to_rgba(c, 0.7) for c in ("tab:green", "tab:blue"))
    assert colours == [green, green, blue]
    values = normalise(scans[0], "minmax", landmarks=landmarks)[scans[0] > 0]
    edges = figure.axes[0].patches[0].get_xy()[:, 0]
    assert (edges.min(), edges.max()) == pytest.approx((float(values.min()), float(values.max())))


def test_measured_points_stand_over_the_truth():
    truth = pd.DataFrame({"lung_ml": [1.0, 3.0], "bone_ml": [2.0, 5.0]})
    figure = preparation.measured_against_truth({"file": 2 * truth, "cube": 3 * truth}, truth, "true", "two chests")
    file, cube = figure.axes[1].lines[:2]
    assert file.get_xdata().tolist() == [2, 5] and file.get_ydata().tolist() == [4, 10]
    assert cube.get_ydata().tolist() == [6, 15] and (file.get_marker(), cube.get_marker()) == ("o", "+")
    assert figure.axes[0].get_title() == "lung (ml)" and figure.axes[0].get_xlabel() == "true"
    assert labels(figure.axes[0]) == ["file", "cube"]


# -- lesson 03 ----------------------------------------------------------------------------------------------------------------


def test_errors_are_drawn_below_reconstructions():
    truth = np.linspace(0, 1, 12).reshape(3, 4)
    figure = slice_vae.reconstructions({"T1": truth, "elbo": truth + 0.1, "printed": 0 * truth}, "three")
    top, bottom = figure.axes[:3], figure.axes[3:6]
    assert [axis.get_title() for axis in top] == ["T1", "elbo", "printed"]
    assert not bottom[0].get_visible() and np.allclose(bottom[1].images[0].get_array(), 0.1)
    assert np.allclose(bottom[2].images[0].get_array(), -truth) and bottom[2].images[0].get_clim() == (-0.5, 0.5)


def test_widths_are_in_percent():
    sigmas = np.repeat([0.1, 1.0], [30, 10])
    axis = slice_vae.posterior_widths({"100 steps": sigmas}, "one head").axes[0]
    heights = axis.patches[0].get_xy()[:, 1]
    assert sorted(set(np.round(heights, 6))) == [0, 25, 75]
    assert labels(axis) == ["100 steps", "prior"] and axis.get_xscale() == "log"


def test_correlation_is_drawn_as_it_is():
    matrix = np.array([[1.0, 0.3], [0.3, 1.0]])
    axis = slice_vae.slice_correlation(matrix, "axial", "codes").axes[0]
    assert (axis.images[0].get_array() == matrix).all() and axis.images[0].get_clim() == (-1, 1)
    assert axis.get_xlabel() == "axial slice number"


# -- lesson 04 ----------------------------------------------------------------------------------------------------------------


def test_bars_of_what_was_lost():
    table = pd.DataFrame({"by the inputs": [1.0, 0.2], "by the truth": [0.5, 3.0]}, ["resolution", "contrast"])
    figure = adaptation.lost_bars({"each alone": table, "in order": 2 * table}, "simulated")
    widths = [bar.get_width() for bar in figure.axes[1].patches]
    assert widths == [0.5, 3.0, 1.0, 6.0] and figure.axes[1].get_title() == "by the truth (simulated)"
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["resolution", "contrast"]
    assert labels(figure.axes[1]) == ["each alone", "in order"]


def test_losses_are_drawn_with_a_line_at_the_output():
    values = pd.DataFrame({"real": [1.0, 3.0], "output at B": [4.0, 6.0], "blurred": [2.0, 2.0]})
    losses = {name: values for name in ("bank, KL", "bank, W2", "a", "b", "c", "d")}
    figure = adaptation.loss_panels(losses, "output at B", "six losses")
    points, line = figure.axes[0].lines[:2]
    assert points.get_xdata().tolist() == [2, 5, 2] and line.get_xdata() == [5, 5]
    assert figure.axes[1].get_xlabel().startswith("squared code units") and "nats" in figure.axes[0].get_xlabel()
    assert figure.axes[0].get_ylim() == (2.5, -0.5)  # the first candidate is on top


@pytest.mark.slow
def test_every_seed_has_a_marker():
    table = pd.DataFrame({0: [0.1, -3.0], 1: [0.2, -2.0]}, ["a", "b"])
    figure = adaptation.seed_figure({"Y_t": table, "Y_s": table + 1}, "two methods")
    first, second = (np.asarray(points.get_offsets()) for points in figure.axes[1].collections)
    assert np.allclose(first, [[1.1, 0], [-2, 1]]) and np.allclose(second, [[1.2, 0], [-1, 1]])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["seed 0", "seed 1"]
    assert "Y_s" in figure.axes[1].get_xlabel() and figure.axes[0].get_xscale() == "symlog"


@pytest.mark.parametrize(
    "method, group",
    [("physics T1 + target style + s-VAE", "physics"), ("3D VAE, KL", "VAE"), ("supervised, n = 10", "bounds"),
     ("oracle: target inputs, source T1", "bounds"), ("trained on target", "bounds"), ("inputs Nyul", "others")],
)  # fmt: skip
def test_methods_are_grouped_by_name(method, group):
    assert adaptation.group_of(method) == group


def test_dice_over_psnr_of_ours_and_the_paper():
    ours = pd.DataFrame(dict(method=["s-VAE", "physics T1", "s-VAE"], psnr_t=[20.0, 22.0, 21.0], dice=[0.5, 0.6, 0.55]))
    paper = pd.DataFrame({"PSNR": [19.0, 22.0, 25.0], "Dice": [0.79, 0.77, 0.82]}, ["none", "s-VAE", "target"])
    figure = adaptation.psnr_and_dice(ours, {"CBICA to TCIA": paper}, ["none", "s-VAE"], ("PSNR", "Dice"))
    left, right = figure.axes
    assert labels(left) == ["VAE", "physics", "bounds", "others"]
    assert np.allclose(left.collections[0].get_offsets(), [[20, 0.5], [21, 0.55]])
    assert np.allclose(right.collections[0].get_offsets(), paper)
    assert right.lines[0].get_xydata().tolist() == [[19, 0.79], [22, 0.77]]


def test_volumes_against_the_mean_over_seeds():
    table = pd.DataFrame({0: [0.0, 1.0], 1: [1.0, 3.0]})
    figure = adaptation.volumes_figure({"Y_t": {"fixed": table}, "Y_s": {"fixed": -table}}, (10, 100), "Fig. 4b")
    mean = figure.axes[1].lines[0]
    assert mean.get_xydata().tolist() == [[10, -0.5], [100, -2]] and mean.get_label() == "fixed"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["fixed"]


def test_curves_and_histograms():
    curves = {"literature": ([0, 1], [0, 0.8])}
    figure = adaptation.curve_figure(curves, {"mapped": torch.rand(50)}, ("SIMA", "SIMB"), "simulated")
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[0, 0], [1, 0.8]]
    assert figure.axes[0].get_ylabel() == "T1 signal at SIMB\n(white matter = 1)"
    assert figure.axes[0].get_xlabel() == "T1 signal at SIMA (white matter = 1)" and labels(figure.axes[1]) == [
        "mapped"
    ]


def test_doubt_chooses_the_slice():
    doubt = np.zeros((3, 4, 5))
    doubt[1, 2, 4] = 1
    t1 = np.random.default_rng(0).random((3, 4, 5))
    figure = adaptation.doubt_panels(t1, 0.1 * t1, doubt, "subject")
    assert [axis.get_title() for axis in figure.axes[:3]] == ["synthetic T1", "spread", "do not trust"]
    assert (figure.axes[0].images[0].get_array() == t1[:, :, 4].T).all()
    assert figure.axes[1].images[0].get_clim() == (0, 0.1) and figure.axes[2].images[0].get_array()[2, 1] == 1
