"""The simulated chest: volumes that are known, a person that fits the scanner, and measurements that find the volumes again."""

import time

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsynth_lib.data.simulation.dataset import simulated_thoraxes
from medsynth_lib.data.simulation.thorax import (
    HOUNSFIELD,
    MATERIALS,
    Canvas,
    draw_tubes,
    generator,
    grow,
    hounsfield,
    make_thorax,
)
from medsynth_lib.evaluation.ct import lung_mask, measure, tissue_masks
from medsynth_lib.files import DataError

VOLUMES = ("lung_ml", "emphysema_percent", "fat_ml", "bone_ml")


@pytest.fixture(scope="module")
def people():
    return [make_thorax(seed) for seed in range(24)]


@pytest.mark.slow
def test_materials_share_every_voxel(people):
    for person in people[:6]:
        assert person.fractions.min() >= -1e-5
        assert torch.allclose(person.fractions.sum(0), torch.ones(64, 64, 64), atol=1e-4)
        assert person.hu.min() >= -1024 and 300 < person.hu.max() < 900 and person.hu.dtype == np.float32


@pytest.mark.slow
def test_nobody_is_cut_off_by_the_field_of_view():
    """The body ends before the sides of the image, the lungs before its top and bottom."""
    for seed in range(40):
        parts = make_thorax(seed, noise=False).fractions
        body = 1 - parts[MATERIALS.index("air")]
        assert max(body[0].max(), body[-1].max(), body[:, 0].max(), body[:, -1].max()) == 0
        lung = parts[MATERIALS.index("lung")] + parts[MATERIALS.index("emphysema")]
        assert max(lung[:, :, 0].max(), lung[:, :, -1].max()) == 0


@pytest.mark.slow
def test_volumes_are_those_of_adults(people):
    """Inspired lungs hold 2.5 to 7.5 l, 4 to 6 l on average; emphysema is missing in some people and half the lung at most."""
    table = {k: np.array([p.truth[k] for p in people]) for k in VOLUMES}
    assert (table["lung_ml"] > 2500).all() and (table["lung_ml"] < 7500).all()
    assert 4000 < table["lung_ml"].mean() < 6000 and 0.5 < table["emphysema_percent"].max() / 50 <= 1.02
    assert (table["emphysema_percent"] == 0).any() and (table["bone_ml"] > 800).all()


@pytest.mark.slow
def test_one_seed_is_one_person_on_every_grid():
    for seed in (0, 3, 5):
        coarse, fine = (make_thorax(seed, (n,) * 3, noise=False).truth for n in (64, 112))
        assert coarse["lung_ml"] == pytest.approx(fine["lung_ml"], rel=0.01)
        assert coarse["emphysema_percent"] == pytest.approx(fine["emphysema_percent"], rel=0.03, abs=0.02)
        assert coarse["fat_ml"] == pytest.approx(fine["fat_ml"], rel=0.06)
        assert coarse["bone_ml"] == pytest.approx(fine["bone_ml"], rel=0.08)  # shells thinner than a voxel
        assert coarse["fev1pp"] == pytest.approx(fine["fev1pp"], abs=1.0)


def test_same_seed_same_scan_other_seed_other_person():
    one, again, other = make_thorax(4, (32,) * 3), make_thorax(4, (32,) * 3), make_thorax(5, (32,) * 3)
    assert np.array_equal(one.hu, again.hu) and not np.array_equal(one.hu, other.hu)


@pytest.mark.slow
def test_thresholds_find_the_volumes(people):
    """Measured from HU alone at 64^3. The biases are those of partial volume: thin shells of dense bone fill whole voxels,
    thin fat and small holes in the lung are lost; the order of people stays."""
    truth = np.array([[p.truth[k] for k in VOLUMES] for p in people])
    found = np.array([[measure(p.hu, p.spacing)[k] for k in VOLUMES] for p in people])
    ratio = dict(zip(VOLUMES, found.mean(0) / truth.mean(0), strict=True))
    assert 0.97 < ratio["lung_ml"] < 1.02 and 0.6 < ratio["emphysema_percent"] < 1
    assert 0.75 < ratio["fat_ml"] < 1 and 1 < ratio["bone_ml"] < 1.35
    healthy = found[truth[:, 1] == 0, 1]
    assert len(healthy) > 3 and (healthy > 0.2).all() and (healthy < 0.8).all()  # air of the bronchi
    for i in range(4):
        assert np.corrcoef(truth[:, i], found[:, i])[0, 1] > 0.99


def test_measured_masks_lie_where_the_materials_are(people):
    person = people[2]
    masks = tissue_masks(person.hu, person.spacing)
    part = dict(zip(MATERIALS, person.fractions.numpy(), strict=True))
    assert part["lung"][masks["lung"]].mean() + part["emphysema"][masks["lung"]].mean() > 0.9
    assert part["fat"][masks["fat"]].mean() > 0.65  # a mixture with muscle passes, too
    assert (part["cortical"] + part["marrow"])[masks["bone"]].mean() > 0.6


def test_air_alone_has_no_lung():
    with pytest.raises(ValueError, match="no lung found"):
        lung_mask(np.full((20, 20, 20), -1000.0), (5, 5, 5))


def test_both_lungs_and_an_open_windpipe(people):
    for person in people[:4]:
        lung = lung_mask(person.hu, person.spacing)
        x = (np.arange(64) - 31.5) * person.spacing[0]
        right, left = lung[x > 20].sum(), lung[x < -20].sum()
        assert 0.8 < right / left < 1.8  # the heart leans to the left
        air = person.fractions[MATERIALS.index("air")].numpy()
        assert air[28:36, 24:44, -1].max() > 0.5  # the windpipe leaves through the top


def test_vessels_are_one_piece():
    """Every voxel of a lung's vessels is reached from its hilum, even where a vessel is thinner than a voxel."""
    canvas = Canvas(0, (72, 72, 72))
    rng = generator(0, "tree")
    tips = rng.uniform(-60, 60, (200, 3))
    drawn = draw_tubes(canvas, grow(rng, np.zeros(3), tips, lambda leaves: 0.85 * leaves**0.37)).numpy()
    _, pieces = ndimage.label(drawn > 1e-3, structure=np.ones((3, 3, 3)))
    assert pieces == 1


def test_tree_reaches_every_tip_and_thickens_towards_its_root():
    rng = np.random.default_rng(0)
    tips = rng.uniform(-50, 50, (60, 3))
    tubes = grow(rng, np.zeros(3), tips, lambda leaves: leaves)
    ends = np.array([end for _, end, _ in tubes])
    assert all((np.abs(ends - tip).sum(1) < 1e-9).any() for tip in tips)
    assert sum(leaves for start, _, leaves in tubes if not start.any()) == 60  # all tips hang on the root


@pytest.mark.parametrize("radius", [0.5, 3.0, 12.0])
def test_a_tube_has_its_volume(radius):
    canvas = Canvas(0, (64, 64, 64))
    share = draw_tubes(canvas, [(np.array([-40.0, -30, -20]), np.array([50.0, 20, 40]), radius)])
    volume = np.pi * radius**2 * np.linalg.norm([90, 50, 60])
    assert float(share.sum()) * np.prod(canvas.spacing) == pytest.approx(volume, rel=0.06)  # clamped at 1 inside


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_share_of_a_slab_is_its_thickness(axis):
    """On average over where it lies between the voxels; by itself, to a tenth of a voxel. The voxels are no cubes."""
    canvas = Canvas(0, (64, 64, 64))
    position, step = torch.from_numpy(canvas.axes[axis]).float(), canvas.spacing[axis]
    for thickness in (0.5, 4.0, 20.0):
        found = [
            step * float(canvas.share(position - offset, -thickness / 2, thickness / 2).sum())
            for offset in np.arange(32) / 32 * step
        ]
        assert np.abs(np.array(found) - thickness).max() < 0.1 * step
        assert np.mean(found) == pytest.approx(thickness, rel=0.03)


@pytest.mark.slow
def test_lung_function_falls_with_emphysema_and_stays_positive():
    table = np.array([list(make_thorax(s, (24,) * 3).truth.values()) for s in range(120)])
    emphysema, fev1, ratio = table[:, 2], table[:, 5], table[:, 6]
    assert (fev1 >= 15).all() and (fev1 <= 135).all() and (ratio >= 0.22).all() and (ratio <= 0.9).all()
    assert np.corrcoef(emphysema, fev1)[0, 1] < -0.6
    slope, intercept = np.polyfit(emphysema, fev1, 1)
    assert slope == pytest.approx(-1.35, abs=0.35) and intercept == pytest.approx(102, abs=4)


def test_emphysema_is_what_is_left_of_it_in_the_image(people):
    for person in people[:8]:
        ml = float(person.fractions[MATERIALS.index("emphysema")].sum()) * np.prod(person.spacing) / 1000
        assert person.truth["emphysema_percent"] == pytest.approx(
            100 * ml / person.truth["lung_ml"], rel=1e-4, abs=1e-6
        )


def test_hounsfield_of_pure_materials():
    canvas = Canvas(0, (1, 1, len(MATERIALS)))
    canvas.fractions = torch.eye(len(MATERIALS))[:, None, None]  # one voxel of each
    zero = torch.zeros(1, 1, len(MATERIALS))
    hu = hounsfield(canvas, dict(inflation=0.0), zero, zero, zero).flatten().tolist()
    assert hu == pytest.approx(list(HOUNSFIELD.values()))
    assert HOUNSFIELD["air"] == -1000 and HOUNSFIELD["emphysema"] < -950 < HOUNSFIELD["lung"] < -500
    assert -190 < HOUNSFIELD["fat"] < -30 and min(HOUNSFIELD["marrow"], HOUNSFIELD["cortical"]) > 150


@pytest.mark.slow
def test_a_subject_takes_at_most_04_seconds_of_one_core():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        make_thorax(0)
        seconds = []
        for seed in (1, 2, 3):
            began = time.process_time()
            make_thorax(seed)
            seconds.append(time.process_time() - began)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds) < 0.4


def test_data_set_is_written_once_and_found_again(tmp_path):
    counts = dict(train=2, test=1)
    frame = simulated_thoraxes(counts, (24, 24, 24), folder=tmp_path / "chests").table
    assert list(frame["subject"]) == ["SIM00000", "SIM00001", "SIM30000"] and set(frame["site"]) == {"SIMCT"}
    assert frame["ct"][0] == "SIM00000/SIM00000_INSP_STD_SIM_COPD.nii.gz"
    assert (frame["fev1pp"] > 0).all() and {"lung_ml", "fat_ml", "bone_ml", "emphysema_percent"} <= set(frame)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.gz")}
    again = simulated_thoraxes(counts, (24, 24, 24), folder=tmp_path / "chests").table
    assert again.equals(frame) and before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.gz")}
    with pytest.raises(DataError, match="other simulated subjects"):
        simulated_thoraxes(dict(train=1), (24, 24, 24), folder=tmp_path / "chests")
