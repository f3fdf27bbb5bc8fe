"""Figures: orientation, millimetres and window are right, and a headless run leaves a picture and no widget."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest

from medsynth_lib.data.simulation.subject import make_subject
from medsynth_lib.display import diagrams, figures
from medsynth_lib.display.scanner import explore_scanner, inversion_curves
from medsynth_lib.display.source import source
from medsynth_lib.display.volume import canonical, show


@pytest.fixture(autouse=True)
def close_figures(monkeypatch):
    monkeypatch.setenv("MEDSYNTH_HEADLESS", "1")
    yield
    plt.close("all")


def one_bright_voxel():
    """RAS volume with one voxel of 5 at index (2, 3, 4) and an anisotropic, shifted affine."""
    volume = np.ones((8, 9, 10), np.float32)
    volume[2, 3, 4] = 5
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = [-10, -20, -30]
    return volume, affine


def test_every_orientation_is_drawn_the_same():
    volume, affine = one_bright_voxel()
    image = nib.Nifti1Image(volume, affine)
    for codes in ("LPS", "SRA", "AIL"):
        odd = image.as_reoriented(
            nib.orientations.ornt_transform(
                nib.orientations.axcodes2ornt(("R", "A", "S")), nib.orientations.axcodes2ornt(tuple(codes))
            )
        )
        array, ras = canonical(np.asarray(odd.dataobj), odd.affine)
        np.testing.assert_array_equal(array, volume)
        np.testing.assert_allclose(ras, affine)


def test_three_planes_meet_at_the_given_point_in_mm():
    volume, affine = one_bright_voxel()
    figure = show(volume, affine, at=(-6, -11, -14), window=(0, 5))
    for axis, fixed, mm in zip(figure.axes, "xyz", (-6, -11, -14), strict=True):
        picture = axis.images[0]
        assert f"{fixed} = {mm} mm" in axis.get_title() and picture.get_array().max() == 5
        assert picture.get_clim() == (0, 5)
        row, column = np.argwhere(picture.get_array() == 5)[0]
        left, right, bottom, top = picture.get_extent()
        others = [m for m, name in zip((-6, -11, -14), "xyz", strict=True) if name != fixed]
        shape = picture.get_array().shape
        assert left + (column + 0.5) * (right - left) / shape[1] == pytest.approx(others[0])
        assert bottom + (row + 0.5) * (top - bottom) / shape[0] == pytest.approx(others[1])
    letters = [{t.get_text() for t in axis.texts} for axis in figure.axes]
    assert letters == [set("PAIS"), set("LRIS"), set("LRPA")]


def test_overlay_chooses_the_position_and_is_drawn():
    volume, affine = one_bright_voxel()
    labels = (volume > 4) * 4
    figure = show(volume, affine, overlay=labels)
    assert all(len(axis.images) == 2 and axis.images[1].get_array().count() == 1 for axis in figure.axes)
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["4 enhancing tumour"]
    assert not show(volume, affine).legends


@pytest.mark.slow
def test_legend_has_the_colours_of_the_picture():
    volume = np.full((8, 9, 10), 0.5, np.float32)  # middle grey
    labels = np.zeros(volume.shape)
    labels[:, :, :5], labels[:, :4, :5] = 3, 1
    figure = show(volume, overlay=labels, window=(0, 1), at=(0, 0, -2), names={1: "hole", 3: "bone"})
    figure.canvas.draw()
    drawn = {tuple(colour) for colour in np.asarray(figure.canvas.buffer_rgba()).reshape(-1, 4)[:, :3].astype(int)}
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["hole", "bone"]
    for axis in figure.axes:
        over = axis.images[1]
        for value, patch in zip((1, 3), figure.legends[0].get_patches(), strict=True):
            laid = np.array(over.cmap(over.norm(value))[:3]) * over.get_alpha() + 0.5 * (1 - over.get_alpha())
            np.testing.assert_allclose(patch.get_facecolor()[:3], laid, atol=0.01)
            assert any(np.abs(np.array(each) - 255 * laid).max() < 3 for each in drawn)


def test_letters_are_inside_the_picture():
    volume, affine = one_bright_voxel()
    figure = show(volume, affine)
    figure.canvas.draw()
    for axis in figure.axes:
        frame = axis.get_window_extent()
        for text in axis.texts:
            box = text.get_window_extent()
            assert frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1


def test_a_slice_is_shown_with_rows_up():
    volume, _ = one_bright_voxel()
    assert figures.slice_of(volume, "axial", 4)[3, 2] == 5 and figures.slice_of(volume[None], "coronal", 3)[4, 2] == 5


def test_grid_shares_one_scale():
    pictures = [[np.zeros((4, 5)), np.ones((4, 5))], [None, np.full((4, 5), 0.5)]]
    figure = figures.slice_grid(pictures, ["a", "b"], ["c", "d"], colour_label="x")
    drawn = [axis.images[0] for axis in figure.axes if axis.images and axis.get_label() != "<colorbar>"]
    assert len(drawn) == 3 and {d.get_clim() for d in drawn} == {(0, 1)}


def test_lesson_figures_draw():
    """Content of what can be counted: curves a tissue, boxes of the diagrams, ten settings of the explorer."""
    subject = make_subject(2, (40, 48, 36), 4.0)
    explorer = explore_scanner(subject)
    assert sum(len(axis.images) for axis in explorer.axes) == 10
    curves = inversion_curves(3.0, 9000, 120, 2500).axes[0]
    csf = next(line for line in curves.lines if line.get_label() == "CSF")
    assert abs(csf.get_xdata()[np.argmin(csf.get_ydata())] - 2500) < 100  # site A's TI nulls CSF
    assert len(diagrams.domain_adaptation_tasks().axes) == 3
    assert "$L_{syn}$ (L1)" in {t.get_text() for t in diagrams.adaptation_framework().axes[0].texts}


def test_source_shows_the_code():
    assert "def make_subject" in source(make_subject).data
    both = source(make_subject, source).data
    assert both.index("def make_subject") < both.index("def source")
