"""What lessons 05 to 07 measure in cubes: known volumes, and labels that lie where the image says."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.preparation.cubes import CubeContract, Cubes, LabelledCubes
from medsynth_lib.data.simulation.atlas import STRUCTURES
from medsynth_lib.data.simulation.dataset import simulated_dataset
from medsynth_lib.data.simulation.subject import make_subject, structure_volumes
from medsynth_lib.evaluation.segmentation import label_structures
from medsynth_lib.experiments import hagan, trained_models
from medsynth_lib.experiments.hagan import BACKGROUND, TrainingSubjects, measure_volumes
from medsynth_lib.experiments.trained_models import artefact_key, default_fabric
from medsynth_lib.files import DataError
from medsynth_lib.settings import HAGANSettings, JointHAGANSettings, load_settings
from medsynth_lib.training.hagan_build import build

N = 32


class Painted(torch.nn.Module):
    """A segmenter that reads the label from the image: -1 is background, 0 the lateral ventricle, 0.5 the thalamus."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        levels = torch.full((len(STRUCTURES),), 9.0)
        for name, level in (("background", -1.0), ("lateral ventricle", 0.0), ("thalamus", 0.5)):
            levels[STRUCTURES.index(name)] = level
        return -(x - levels[:, None, None, None]).square()


def test_volumes_of_a_painted_brain():
    cube = torch.full((1, 1, N, N, N), -1.0)
    cube[:, :, 4:24, 4:24, 4:24] = 0.5
    cube[:, :, 10:14, 10:15, 10:16] = 0.0
    table = measure_volumes(cube, (2.0, 2.0, 2.5), "t1", Painted())
    ml = 2 * 2 * 2.5 / 1000
    (row,) = table.to_dict("records")
    assert row["brain"] == pytest.approx(20**3 * ml)
    assert row["lateral ventricle"] == pytest.approx(4 * 5 * 6 * ml)
    assert row["thalamus"] == pytest.approx((20**3 - 120) * ml)
    assert sum(row.values()) == pytest.approx(2 * 20**3 * ml)  # the other ten structures are empty
    assert list(table.columns) == ["brain", *STRUCTURES[1:]]


def test_cubes_are_labelled_in_order_together_as_one_at_a_time():
    """Five: one more than a batch. Each has a thalamus of its own size, 1 to 5 voxels an axis."""
    cubes = torch.full((5, 1, N, N, N), -1.0)
    for k in range(5):
        cubes[k, :, 4 : 5 + k, 4 : 5 + k, 4 : 5 + k] = 0.5
    together = label_structures(Painted(), cubes)
    assert torch.equal(together, torch.cat([label_structures(Painted(), cube[None]) for cube in cubes]))
    assert (together == STRUCTURES.index("thalamus")).sum((1, 2, 3)).tolist() == [1, 8, 27, 64, 125]


def test_volumes_scale_with_each_cubes_own_voxels():
    cubes = torch.full((2, 1, N, N, N), 0.5)
    table = measure_volumes(cubes, torch.tensor([[1.0, 1, 1], [2, 1, 3]]), "t1", Painted())
    assert table["brain"].tolist() == pytest.approx([N**3 / 1000, 6 * N**3 / 1000])


def test_a_brain_needs_a_segmenter_and_background_is_not_brain():
    cubes = torch.full((1, 1, N, N, N), BACKGROUND - 0.01)
    assert measure_volumes(cubes, (1.0, 1, 1), "t1", Painted())["brain"][0] == 0
    with pytest.raises(DataError, match="give structure_segmenter"):
        measure_volumes(cubes, (1.0, 1, 1), "t1")


def scaled(hu):
    return 2 * (hu + 1024) / 1624 - 1


def test_volumes_of_a_painted_chest_and_of_noise():
    """Soft tissue with a lung of 12^3 voxels, of which a tenth is emphysema, and a block of bone; and one without a lung."""
    chest = torch.full((1, 1, N, N, N), scaled(40.0))
    chest[:, :, 8:20, 8:20, 8:20] = scaled(-850.0)
    chest[:, :, 8:20, 8:20, 8] = scaled(-980.0)
    chest[:, :, 25:28, 25:28, 25:28] = scaled(400.0)
    flat = torch.full_like(chest, scaled(40.0))
    table = measure_volumes(torch.cat([chest, flat]), (8.0, 8, 8), "ct")
    ml = 8**3 / 1000
    assert table["lung_ml"][0] == pytest.approx(12**3 * ml)
    assert table["emphysema_percent"][0] == pytest.approx(100 / 12)
    assert table["bone_ml"][0] == pytest.approx(27 * ml)
    assert table["fat_ml"][0] == 0
    assert table.loc[1].isna().all()


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brains")
    manifest = simulated_dataset(dict(train=2), (64, 64, 42), 3.7, ("A",), tumour=False, folder=folder)
    return LabelledCubes(manifest, CubeContract("t1", 48))


@pytest.mark.slow
def test_labels_lie_on_the_image(brains):
    """Ventricles are dark inside the brain, white matter is bright, and all structures lie in the brain."""
    for sample in (brains[i] for i in range(len(brains))):
        x, labels = sample["x"], sample["labels"]
        assert x.shape == labels.shape == (1, 48, 48, 48) and labels.dtype == torch.uint8
        ventricle, white = (x[labels == STRUCTURES.index(s)] for s in ("lateral ventricle", "cerebral white matter"))
        cortex = x[labels == STRUCTURES.index("cerebral cortex")]
        assert ventricle.median() < cortex.median() < white.median()
        assert float((x[labels > 0] > BACKGROUND).float().mean()) > 0.97
        shifted = torch.roll(labels, 4, 3)  # the fault that this test is to find: labels on another grid
        wrong = x[shifted == STRUCTURES.index("lateral ventricle")]
        assert ventricle.mean() < wrong.mean() - 0.1


@pytest.mark.slow
def test_labels_keep_the_volumes_of_the_subject(brains):
    for sample in (brains[i] for i in range(len(brains))):
        truth = structure_volumes(make_subject(int(sample["subject"]), (64, 64, 42), 3.7, tumour=False))
        ml = float(sample["spacing"].prod()) / 1000
        counts = np.bincount(sample["labels"].flatten(), minlength=len(STRUCTURES)) * ml
        found = dict(zip(STRUCTURES, counts, strict=True))
        assert sum(found[s] for s in truth) == pytest.approx(sum(truth.values()), rel=0.02)
        for name, off in (("cerebral white matter", 0.03), ("cerebral cortex", 0.03), ("lateral ventricle", 0.1)):
            assert found[name] == pytest.approx(truth[name], rel=off)  # nearest neighbour: the smaller, the coarser


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """Lesson 05 in profile quick with two training subjects on disk, whose models learn from four."""
    monkeypatch.setenv("MEDSYNTH_CACHE", str(tmp_path))
    monkeypatch.setenv("MEDSYNTH_HEADLESS", "1")
    settings = load_settings("05", "quick", {"training_subjects": 4, "volume_counts": dict(train=2, tune=1, test=1)})
    return SimpleNamespace(settings=settings, data_dir=None, seed=0, notebook="05")


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["t1", "ct"])
def test_a_model_is_found_by_who_its_subjects_are_and_none_is_simulated_for_that(lesson, modality, monkeypatch):
    splits, _ = hagan.lesson_cubes(lesson, modality)
    asked = {}
    monkeypatch.setattr(
        hagan, "train_or_load", lambda name, settings, train, tune: asked.update(settings=settings, train=train)
    )
    with monkeypatch.context() as patch:
        patch.setattr(hagan, "simulated_volumes", lambda *_: pytest.fail("a subject was simulated"))
        hagan.trained_hagan(lesson, splits)
        key = artefact_key(asked["settings"], asked["train"], splits["tune"])
    assert isinstance(asked["train"], TrainingSubjects) and len(asked["train"]) == 4
    manifest = hagan.simulated_volumes(lesson.settings, modality, dict(train=4))
    assert key == artefact_key(asked["settings"], Cubes(manifest, splits["train"].contract), splits["tune"])
    for i in range(2):  # the lesson's own are the first
        assert torch.equal(asked["train"][i]["x"], splits["train"][i]["x"])
    assert not torch.equal(asked["train"][3]["x"], asked["train"][1]["x"])


@pytest.mark.slow
def test_other_subjects_are_learned_from_as_they_are(lesson, monkeypatch):
    splits, _ = hagan.lesson_cubes(lesson, "t1")
    asked = []
    monkeypatch.setattr(hagan, "train_or_load", lambda name, settings, train, tune: asked.append(train))
    whole = splits["train"].manifest
    for table in (whole.table.drop(columns="simulator"), whole.table.iloc[::-1], whole.table.assign(simulated=False)):
        splits["train"].manifest = whole.replace(table)  # a look-alike, another order, real scans
        hagan.trained_hagan(lesson, splits)
        assert asked.pop() is splits["train"]
    lesson.settings = load_settings(
        "05", "quick", {"training_subjects": 2, "volume_counts": dict(train=2, tune=1, test=1)}
    )
    splits["train"].manifest = whole
    hagan.trained_hagan(lesson, splits)
    assert asked.pop() is splits["train"]


def test_lessons_05_to_07_share_their_models():
    """One HA-GAN an organ serves all three: equal settings, subjects and volumes."""
    one, *others = (load_settings(number, "lesson") for number in ("05", "06", "07"))
    shared = ("volume_counts", "training_subjects", "volume_size", "shape", "spacing", "hagan", "structures")
    assert all(getattr(one, name) == getattr(other, name) for name in shared for other in others)


def test_a_shipped_model_holds_of_the_generator_its_mean_alone(tmp_path):
    """Loaded again, both are the mean; everything else is what was trained, to half precision."""
    settings = JointHAGANSettings(size=32, latent=16, c=2, average=0.9, steps=1, batch_size=1, validate_every=1)
    model = build(settings)
    with torch.no_grad():
        model.networks["G^A"].first.weight.add_(1)
    trained_models.save(tmp_path / "made", model, CubeContract("t1", 32), {})
    (tmp_path / "made/history.csv").write_text("step\n1\n")
    trained_models.ship(tmp_path / "made", tmp_path / "shipped")
    shipped = load_file(tmp_path / "shipped/made/weights.safetensors")
    assert not any(k.startswith("G^") for k in shipped)
    assert all(v.dtype == torch.float16 for v in shipped.values())
    loaded = trained_models.load(tmp_path / "shipped/made", "shipped")
    assert loaded.settings == settings
    for name, source in {"G^A": "mean G^A", "mean G^A": "mean G^A", "D^H": "D^H", "E^G": "E^G"}.items():
        for key, value in model.networks[source].state_dict().items():
            assert torch.equal(loaded.networks[name].state_dict()[key], value.half().float()), (name, key)


@pytest.mark.slow
def test_compilation_is_a_switch_of_the_environment_and_means_never_run(monkeypatch):
    """It changes rounding alone, so that it is no setting; running means are not compiled."""
    data, made = Unread([dict()]), []

    def fit(model, *_, **__):
        made.append(model)
        raise KeyboardInterrupt

    monkeypatch.setattr(trained_models.loop, "fit", fit)
    settings = HAGANSettings(size=32, latent=16, c=2, average=0.9, steps=1)
    for switch in ("0", "1"):
        monkeypatch.setenv("MEDSYNTH_COMPILE", switch)
        with pytest.raises(KeyboardInterrupt):
            trained_models.train_or_load("test", settings, data, data)
    plain, compiled = ({k for k, n in m.networks.items() if n._compiled_call_impl is not None} for m in made)
    assert not plain and compiled == set(made[1].optimisers)


def test_precisions_that_mix_the_losses_scales_are_refused(monkeypatch):
    monkeypatch.setenv("MEDSYNTH_PRECISION", "16-mixed")
    with pytest.raises(ValueError, match="MEDSYNTH_PRECISION is '16-mixed'; set it to 32-true or bf16-mixed"):
        default_fabric()
    monkeypatch.setenv("MEDSYNTH_PRECISION", "bf16-mixed")
    assert default_fabric().strategy.precision.precision == "bf16-mixed"


class Unread(list):
    """Samples of no subject."""

    contract = CubeContract("t1", 32)
    manifest = Manifest(pd.DataFrame(dict(subject=[])), "")
