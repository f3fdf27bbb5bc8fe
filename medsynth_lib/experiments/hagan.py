"""What lessons 05 to 07 share: cubes of brains and chests, HA-GAN trained on them, and what is measured in a volume.

The structure segmenter learns from simulated brains, whose labels are known. It is applied to real and generated ones.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.utils.data import Dataset

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.preparation.cubes import CUBES_VERSION, CubeContract, Cubes, CubesOnDisk, LabelledCubes, to_hu
from medsynth_lib.data.preparation.pairs import Sample
from medsynth_lib.data.simulation.atlas import STRUCTURES
from medsynth_lib.data.simulation.dataset import simulated_dataset
from medsynth_lib.evaluation import ct
from medsynth_lib.evaluation.recovery import BACKGROUND
from medsynth_lib.evaluation.segmentation import label_structures
from medsynth_lib.experiments.lesson_data import (
    kind_of,
    lesson_volumes,
    require_data,
    simulated_subjects,
    simulated_volumes,
    workers,
)
from medsynth_lib.experiments.trained_models import Trained, train_or_load
from medsynth_lib.files import DataError, cache_folder, fingerprint

NAMES = {"t1": "hagan-brain", "ct": "hagan-thorax"}  # modality -> start of the name of its model's folder
LABELLED = 64  # subjects that the structure segmenter learns from, at most


# -- cubes and trained models ----------------------------------------------------------------------------------------------


def lesson_cubes(lesson: Any, modality: str) -> tuple[dict[str, CubesOnDisk], str]:
    """Prepare a lesson's cubes once; read them from the volume cache from then on.

    Args:
        lesson: a `course.Lesson`; the size is that of `settings.hagan`.
        modality: "t1", skull-stripped brains, or "ct", chests.

    Returns:
        Cubes by split (train, tune, test), and "simulated" or "real".

    Raises:
        DataError: where DATA_DIR has neither enough chests nor enough brains; one of them is simulated where it lacks.
    """
    require_data(lesson)
    manifest = lesson_volumes(lesson, modality, required=False)
    contract = CubeContract(modality, lesson.settings.hagan.size)
    parts = {name: Cubes(manifest.select(split=name), contract) for name in ("train", "tune", "test")}
    return {name: cached_cubes(cubes) for name, cubes in parts.items()}, kind_of(manifest)


def cached_cubes(cubes: Cubes) -> CubesOnDisk:
    """Put cubes into a volume cache whose name says which scans they are, prepared how."""
    scans = [[scan["subject"], *scan.identity(cubes.contract.modalities)] for scan in cubes.manifest.scans()]
    key = fingerprint(scans, cubes.contract, CUBES_VERSION)
    return cubes.on_disk(cache_folder("cubes", key), key, **workers())


class TrainingSubjects(Dataset):
    """Cubes of the first `settings.training_subjects` simulated subjects of the training split.

    A shipped model is found by who its subjects are. So no subject is simulated before a volume is asked for.
    """

    def __init__(self, settings: Any, contract: CubeContract) -> None:
        self.settings, self.contract = settings, contract
        table = simulated_subjects(settings, contract.modality, settings.training_subjects)
        self.manifest = Manifest(table, cache_folder("simulated"))  # no file is read from there

    @cached_property
    def volumes(self) -> CubesOnDisk:
        """The cubes, simulated and prepared when this is first read."""
        manifest = simulated_volumes(self.settings, self.contract.modality, dict(train=len(self)))
        return cached_cubes(Cubes(manifest, self.contract))

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> Sample:
        return self.volumes[index]


def trained_hagan(lesson: Any, splits: dict[str, CubesOnDisk]) -> Trained:
    """Train or load HA-GAN by a lesson's settings.

    It learns from the training split. Where that holds the first of `TrainingSubjects` and no other, it learns from all of
    them.

    Args:
        lesson: a `course.Lesson`.
        splits: of `lesson_cubes`.
    """
    train = splits["train"]
    subjects = TrainingSubjects(lesson.settings, train.contract)
    first, table = subjects.manifest.head(len(train)).table, train.manifest.table
    if len(subjects) > len(train) and set(first) <= set(table) and table[list(first)].equals(first):
        train = subjects
    settings = replace(lesson.settings.hagan, seed=lesson.seed)
    return train_or_load(NAMES[train.contract.modality], settings, train, splits["tune"])


def structure_segmenter(lesson: Any) -> nn.Module:
    """Train or load the segmenter of brain structures, on simulated tumour-free brains.

    Returns:
        A network from T1 cubes (b, 1, N, N, N) to logits (b, 13, N, N, N).
    """
    train, tune = (labelled_cubes(lesson, split) for split in ("train", "tune"))
    settings = replace(lesson.settings.structures, seed=lesson.seed)
    network = train_or_load("structures", settings, train, tune).networks["segmenter"]
    return network.to(memory_format=torch.channels_last_3d)  # a CPU convolves so faster


def labelled_cubes(lesson: Any, split: str) -> LabelledCubes:
    """Return the first simulated tumour-free brains of a split with their structure labels."""
    s = lesson.settings
    manifest = simulated_dataset(s.volume_counts, tuple(s.shape), s.spacing, ("A",), tumour=False, **workers())
    return LabelledCubes(manifest.select(split=split).head(LABELLED), CubeContract("t1", s.hagan.size))


# -- measurements in volumes -----------------------------------------------------------------------------------------------


def measure_volumes(
    cubes: Tensor, spacings: Tensor | Sequence[float], modality: str, segmenter: nn.Module | None = None
) -> pd.DataFrame:
    """Measure what cubes hold.

    Args:
        cubes: (b, 1, N, N, N) in [-1, 1].
        spacings: voxel sizes (b, 3) or (3) in mm. A generated cube has none: give it the mean of the real ones.
        modality: "ct" or "t1".
        segmenter: of `structure_segmenter`, for T1.

    Returns:
        One row a cube. CT: `ct.measure` (lung_ml, emphysema_percent, fat_ml, bone_ml), nan where no lung is found. T1: ml of
        "brain" and of every structure in `atlas.STRUCTURES`.

    Raises:
        DataError: for T1 without a segmenter.
    """
    spacings = torch.as_tensor(spacings).expand(len(cubes), 3)
    if modality == "ct":
        return pd.DataFrame([measure_chest(cube, mm) for cube, mm in zip(cubes, spacings, strict=True)])
    if segmenter is None:
        raise DataError("structures of a brain are measured by a segmenter; give structure_segmenter(lesson).")
    labels = label_structures(segmenter, cubes)
    return pd.DataFrame([measure_brain(*each) for each in zip(cubes, labels, spacings, strict=True)])


def measure_brain(cube: Tensor, labels: Tensor, mm: Tensor) -> dict[str, float]:
    """Return the volumes in ml of a brain and of its structures.

    Args:
        cube: (1, N, N, N) in [-1, 1].
        labels: structures (N, N, N), numbered as in `atlas.STRUCTURES`.
        mm: voxel size (3).
    """
    ml = float(mm.prod()) / 1000
    counts = torch.bincount(labels.flatten(), minlength=len(STRUCTURES)) * ml
    return dict(brain=float(brain_mask(cube).sum() * ml)) | dict(zip(STRUCTURES[1:], counts[1:].tolist(), strict=True))


def brain_mask(cube: Tensor) -> Tensor:
    """Mark the largest region, connected by faces, of what is not background in a T1 cube.

    So the specks of a generated background do not count. A blank cube has no brain.

    Args:
        cube: (1, N, N, N) in [-1, 1].

    Returns:
        Boolean mask (N, N, N).
    """
    inside = (cube[0] > BACKGROUND).numpy()
    regions, _ = ndimage.label(inside)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    return torch.from_numpy(inside & (regions == sizes.argmax()))


def measure_chest(cube: Tensor, mm: Tensor) -> dict[str, float]:
    """Return `ct.measure` of a cube (1, N, N, N) in [-1, 1]; nan where it has no lung."""
    try:
        return ct.measure(to_hu(cube[0]).numpy(), mm.tolist())
    except ValueError:
        return dict.fromkeys(("lung_ml", "emphysema_percent", "fat_ml", "bone_ml"), float("nan"))
