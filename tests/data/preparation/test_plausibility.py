"""What values say about a scan: silence on every simulated one, and words on every fault that is planted."""

import re

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from data_download import lookalike
from medsynth_lib.data.files.manifest import Scan
from medsynth_lib.data.files.nifti import read_volume, write_volume
from medsynth_lib.data.preparation.contract import Contract
from medsynth_lib.data.preparation.cubes import CubeContract, Cubes, scale_ct
from medsynth_lib.data.preparation.pairs import PairedVolumes
from medsynth_lib.data.preparation.plausibility import examine, require_plausible, warnings_of
from medsynth_lib.data.simulation.atlas import template_path
from medsynth_lib.data.simulation.dataset import simulated_dataset
from medsynth_lib.data.simulation.thorax import make_thorax
from medsynth_lib.files import SAID, DataError

pytestmark = pytest.mark.slow  # by their number

CONTRASTS = ("t1", "t1ce", "t2", "flair")
NOISE = np.random.default_rng(0)


def volume(array, affine):
    array = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None]
    return MetaTensor(array, affine=affine, meta={"filename_or_obj": "scan.nii.gz"})


@pytest.fixture(scope="module")
def chests():
    return [make_thorax(seed, (40, 40, 40)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    """T1 and T2 of two simulated sites, and MNI152's T1, in small: (contrast, voxels, affine)."""
    manifest = simulated_dataset(dict(train=1), (80, 80, 52), 3.0, ("A", "C"), folder=tmp_path_factory.mktemp("brains"))
    found = [(m, read_volume(scan.path(m))) for scan in manifest.scans() for m in ("t1", "t2")]
    real = read_volume(template_path("t1"))
    small = volume(real[0].numpy()[::2, ::2, ::2], real.affine.numpy() @ np.diag([2, 2, 2, 1]))
    return [(m, v[0].numpy(), v.affine.numpy()) for m, v in [*found, ("t1", small)]]


@pytest.mark.parametrize("size", [32, 48, 64])
def test_nothing_is_said_of_simulated_chests(size):
    for seed in (3, 4):
        thorax = make_thorax(seed, (size,) * 3)
        assert warnings_of(volume(thorax.hu, thorax.affine), "ct") == []


def test_nothing_is_said_of_padding_clipping_and_noise(chests):
    for thorax in chests:
        hu = thorax.hu.copy()
        hu[:4] = -3024
        assert warnings_of(volume(hu, thorax.affine), "ct") == []
        hu = np.clip(thorax.hu + NOISE.normal(0, 60, thorax.hu.shape), -1024, 3071)  # a low dose
        assert warnings_of(volume(hu, thorax.affine), "ct") == []


@pytest.mark.slow
def test_nothing_is_said_of_simulated_brains_and_lookalikes(tmp_path):
    for tumour, shape, spacing in ((True, (80, 80, 52), 3.0), (False, (32, 32, 21), 7.5)):
        manifest = simulated_dataset(
            dict(train=2), shape, spacing, ("A", "B", "C"), tumour=tumour, folder=tmp_path / f"{spacing}"
        )
        for scan in manifest.scans():
            for modality in filter(scan.has, CONTRASTS):
                assert warnings_of(read_volume(scan.path(modality)), modality) == []
    for modality, image in lookalike.stripped(7, "C", CONTRASTS).items():
        assert warnings_of(volume(image, lookalike.BRATS[1]), modality) == []
    hu, grid, _ = lookalike.chest(12)
    assert warnings_of(volume(hu, grid), "ct") == []


REFUSED_CT = {
    "unsigned": (lambda h: np.clip(h + 1024, 0, 4095), "as if the intercept of -1024 was not added"),
    "shifted by 1024": (lambda h: h - 1024, "not a chest CT in HU: as if the intercept of -1024 was added twice"),
    "shifted by 500": (
        lambda h: h + 500,
        r"peaks at -4.. HU .* not a chest CT in HU: as if all were shifted by about 5[0-9]0",
    ),
    "shifted by -500": (lambda h: h - 500, "shifted by about -[45][0-9]0 HU"),
    "half slope": (lambda h: h / 2, "as if the slope is half of what it should be"),
    "half slope of stored": (lambda h: (h + 1024) / 2 - 1024, "as if the slope is half"),
    "double slope": (lambda h: (h + 1024) * 2 - 1024, "as if the slope is twice"),
    "sign": (lambda h: -h, "not a chest CT in HU: as if the sign was turned"),
    "eight bits": (lambda h: h.astype(int).astype(np.int8), "not a chest CT in HU"),
    "window": (lambda h: np.clip(h, -160, 240), "peaks at -[0-9]+ HU .* and at [0-9]+ HU .* not a chest CT in HU"),
    "unit range": (lambda h: np.clip((h + 1024) / 812 - 1, -1, 1), "not a chest CT in HU"),
    "labels": (lambda h: np.digitize(h, [-950, -500, -100, 100]) * 1000.0 - 1000, "[45] different values .* label map"),
    "PET": (lambda h: np.abs(NOISE.gamma(1, 2, h.shape)), "not a chest CT in HU"),
}


@pytest.mark.parametrize("fault, message", REFUSED_CT.values(), ids=REFUSED_CT)
def test_ct_that_cannot_be_hu_is_refused_with_the_evidence(chests, fault, message):
    for thorax in chests:
        broken = volume(fault(thorax.hu.astype(float)), thorax.affine)
        with pytest.raises(DataError, match=f"^scan.nii.gz: .*{message}"):
            require_plausible(broken, "ct")
        with pytest.raises(DataError, match=message):
            scale_ct(broken)
        assert warnings_of(broken, "ct")


WARNED_CT = {
    "shifted by 100": (lambda h: h + 100, "air around the body has -[89]..? HU, where -1000 is right"),
    "shifted by -200": (lambda h: h - 200, "are unusual for a chest CT: as if all were shifted by about -[12]"),
    "slope of 0.9": (lambda h: h * 0.9, "air around the body has -(89|90|91)."),
    "slope of 1.25": (lambda h: h * 1.25, "peaks at -12.. HU"),
    "lung window": (lambda h: np.clip(h, -1350, 150), "0.00 % of the voxels are above 150 HU, as bone is"),
    "no lung": (lambda h: np.where((h < -500) & (h > -960), 40, h), "of the body lies between -950 and -500 HU"),
}


@pytest.mark.parametrize("fault, message", WARNED_CT.values(), ids=WARNED_CT)
def test_doubtful_ct_gets_a_warning(chests, fault, message):
    for thorax in chests:
        broken = volume(fault(thorax.hu.astype(float)), thorax.affine)
        require_plausible(broken, "ct")
        assert any(re.search(message, text) for text in warnings_of(broken, "ct"))


def stretched(v, top):
    """Whole numbers with the brain's 99.5th percentile at `top`."""
    return np.rint(v * top / np.percentile(v[v != 0], 99.5)).astype(int)


def inside(v, values):
    return np.where(v != 0, values, 0)


REFUSED_MR = {
    "int8": (lambda v: stretched(v, 150).astype(np.int8), "ran over the end of a type"),
    "int8 twice": (lambda v: stretched(v, 600).astype(np.int8), "ran over the end of a type"),
    "uint8": (lambda v: stretched(v, 400).astype(np.uint8), "ran over the end of a type"),
    "int16": (lambda v: stretched(v, 40000).astype(np.int16), "ran over the end of a type"),
    "mask": (lambda v: (v != 0) * 1000, "1 different values, and 100% of neighbours equal, are a mask"),
    "labels": (lambda v: inside(v, 1 + np.digitize(v, np.percentile(v[v != 0], (33, 66)))), "3 different values"),
    "regions": (lambda v: inside(v, 1 + np.indices(v.shape).sum(0) // 12 * 7.0), "of neighbours equal, are a mask"),
}


@pytest.mark.parametrize("fault, message", REFUSED_MR.values(), ids=REFUSED_MR)
def test_mr_that_cannot_be_an_image_is_refused(brains, fault, message):
    for modality, v, affine in brains:
        with pytest.raises(DataError, match=f"^scan.nii.gz: .*{message}"):
            require_plausible(volume(fault(v), affine), modality)


WARNED_MR = {
    "inverted": ("t1", lambda v: inside(v, v.max() + 1 - v), "or like an inverted image"),
    "inverted and cut": ("t1", lambda v: inside(v, np.clip(np.percentile(v, 99.9) - v, 1, None)), "an inverted image"),
    "saturated": ("t1", lambda v: np.minimum(v, np.percentile(v[v != 0], 90)), "bright tissue was cut off"),
    "z-scores": ("t2", lambda v: inside(v, (v - v[v != 0].mean()) / v[v != 0].std()), "below 0 .* undo a z-score"),
    "six bits": ("t1", lambda v: np.clip(stretched(v, 45), 0, 50), "only [0-9]+ grey levels"),
}


@pytest.mark.parametrize("modality, fault, message", WARNED_MR.values(), ids=WARNED_MR)
def test_doubtful_mr_gets_a_warning(brains, modality, fault, message):
    for _, v, affine in (brain for brain in brains if brain[0] == modality):
        broken = volume(fault(v), affine)
        require_plausible(broken, modality)
        assert any(re.search(message, text) for text in warnings_of(broken, modality))


def test_another_contrast_in_a_cell_is_noticed(brains):
    for modality, v, affine in brains:
        (text,) = warnings_of(volume(v, affine), "t2" if modality == "t1" else "t1")
        assert "another contrast" in text
        assert warnings_of(volume(v, affine), modality) == [] == warnings_of(volume(v, affine), "seg")


def test_real_scans_are_examined_where_lessons_read_them(tmp_path, chests, brains, capsys):
    SAID.clear()
    write_volume(tmp_path / "ct.nii.gz", chests[0].hu + 150, chests[0].affine)
    _, v, affine = brains[0]
    for name, image in dict(t1=inside(v, v.max() + 1 - v), t2=v, flair=v).items():
        write_volume(tmp_path / f"{name}.nii.gz", image, affine)
    write_volume(tmp_path / "mask.nii.gz", (v != 0) * 100, affine)
    cells = dict(subject="P1", site="X", ct="ct.nii.gz", t1="t1.nii.gz", t2="t2.nii.gz", flair="flair.nii.gz")
    scan = Scan(cells, tmp_path)
    Cubes.make(SimpleCubes("ct"), scan)
    Cubes.make(SimpleCubes("ct"), scan)
    printed = capsys.readouterr().out
    assert printed.count("ct.nii.gz: air around the body") == 1  # each kind once
    PairedVolumes.make(SimpleCubes("pair"), scan)
    assert "t1.nii.gz: the rim of the brain" in capsys.readouterr().out
    with pytest.raises(DataError, match="mask.nii.gz.*label map"):
        Cubes.make(SimpleCubes("t1"), scan.replace(t1="mask.nii.gz"))
    examine(scan.replace(simulated=True), {"t1": volume((v != 0) * 1.0, affine)})  # the simulator's own is not asked


class SimpleCubes:
    """What `make` reads of a data set: its contract."""

    def __init__(self, modality):
        pair = Contract(spacing=(3.0,) * 3, size=(64, 64, 48))
        self.contract = pair if modality == "pair" else CubeContract(modality, 16)


def test_a_turned_sign_is_refused_and_a_z_score_named(brains):
    contrast, image, affine = brains[0]
    with pytest.raises(DataError, match="100.0% of the brain is below 0"):
        require_plausible(volume(-image, affine), contrast)
    inside = image != 0
    scored = np.where(inside, (image - image[inside].mean()) / image[inside].std() + 1e-6, 0)
    require_plausible(volume(scored, affine), contrast)
    assert any("below 0" in word for word in warnings_of(volume(scored, affine), contrast))


@pytest.mark.parametrize("factor, refused", [(0.1, True), (0.25, True), (1 / 2.54, False), (1.8, False), (25.4, True)])
def test_the_size_of_a_brain_is_judged(brains, factor, refused):
    """Centimetres or inches in the place of millimetres, and other wrong voxel sizes; the voxels do not change."""
    for contrast, image, affine in brains:
        changed = affine @ np.diag([factor, factor, factor, 1])
        assert any("box around the brain is" in word for word in warnings_of(volume(image, changed), contrast))
        if refused:
            with pytest.raises(DataError, match="scan.nii.gz: the box around the brain.*voxel sizes"):
                require_plausible(volume(image, changed), contrast)
