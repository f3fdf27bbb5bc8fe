"""What lessons 05 to 07 share: cubes of brains and chests, HA-GAN trained on them, and what is measured in a volume.

The structure segmenter learns from simulated brains, whose labels are known, and is applied to real and generated ones.
"""

import hashlib
import json
from dataclasses import asdict
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch.utils.data import Dataset

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.preparation.cubes import CUBES_VERSION, CubeContract, Cubes, LabelledCubes, to_hu
from medsynth_lib.data.simulation.atlas import STRUCTURES
from medsynth_lib.data.simulation.dataset import simulated_dataset
from medsynth_lib.evaluation import ct
from medsynth_lib.evaluation.recovery import BACKGROUND
from medsynth_lib.evaluation.segmentation import label_structures
from medsynth_lib.experiments.lesson_data import kind_of, lesson_volumes, simulated_subjects, simulated_volumes
from medsynth_lib.experiments.trained_models import train_or_load
from medsynth_lib.files import DataError, cache_folder
from medsynth_lib.processes import headless

NAMES = {"t1": "hagan-brain", "ct": "hagan-thorax"}


def lesson_cubes(lesson, modality):
    """Cubes of a lesson by split, {"train": ..., "tune": ..., "test": ...}, and "simulated" or "real".

    ``modality``: "t1", skull-stripped brains, or "ct", chests. The size is that of ``settings.hagan``. They are prepared once
    and read from a sharded cache.
    """
    manifest = lesson_volumes(lesson, modality, required=False)
    contract = CubeContract(modality, lesson.settings.hagan["size"])
    parts = {name: Cubes(manifest.select(split=name), contract) for name in ("train", "tune", "test")}
    return {name: cached_cubes(cubes) for name, cubes in parts.items()}, kind_of(manifest)


def cached_cubes(cubes):
    """`Cubes` from a sharded cache whose name says which scans, prepared how."""
    scans = [[scan["subject"], *scan.identity(cubes.contract.modalities)] for scan in cubes.manifest.scans()]
    key = hashlib.sha256(json.dumps([scans, asdict(cubes.contract), CUBES_VERSION], sort_keys=True).encode()).hexdigest()[:16]
    return cubes.on_disk(cache_folder("cubes", key), key, jobs=torch.get_num_threads(), progress=not headless())


class People(Dataset):
    """Cubes of the first ``settings.people`` simulated people of the training split.

    Nobody is simulated before a volume is asked for, so that a shipped model, which is found by who they are, needs none.
    """

    def __init__(self, settings, contract):
        self.settings, self.contract = settings, contract
        table = simulated_subjects(settings, contract.modality, settings.people)
        self.manifest = Manifest(table, cache_folder("simulated"))  # nobody is read from there

    @cached_property
    def volumes(self):
        manifest = simulated_volumes(self.settings, self.contract.modality, dict(train=len(self)))
        return cached_cubes(Cubes(manifest, self.contract))

    def __len__(self):
        return len(self.manifest)

    def __getitem__(self, index):
        return self.volumes[index]


def trained_hagan(lesson, splits, **changes):
    """HA-GAN by the lesson's settings, trained or loaded; ``changes`` to the recipe make another model.

    It learns from the training split, or from `People`, if that split is the first and not all of them.
    """
    recipe = dict(algorithm="hagan", **lesson.settings.hagan | changes, seed=lesson.seed)
    train = splits["train"]
    everybody = People(lesson.settings, train.contract)
    first, table = everybody.manifest.head(len(train)).table, train.manifest.table
    if len(everybody) > len(train) and set(first) <= set(table) and table[list(first)].equals(first):
        train = everybody
    return train_or_load(NAMES[train.contract.modality], recipe, train, splits["tune"])


def structure_segmenter(lesson):
    """A network (b, 1, N, N, N) -> logits (b, 13, N, N, N), trained on simulated tumour-free brains or loaded."""
    train, tune = (labelled_cubes(lesson, split) for split in ("train", "tune"))
    recipe = dict(algorithm="structures", **lesson.settings.structures, seed=lesson.seed)
    network = train_or_load("structures", recipe, train, tune).networks["segmenter"]
    return network.to(memory_format=torch.channels_last_3d)  # a CPU convolves so faster


def labelled_cubes(lesson, split):
    """The simulated tumour-free brains of a split with their structure labels; of "train" the first 64."""
    s = lesson.settings
    options = dict(jobs=torch.get_num_threads(), progress=not headless())
    manifest = simulated_dataset(s.volume_counts, tuple(s.shape), s.spacing, ("A",), tumour=False, **options)
    return LabelledCubes(manifest.select(split=split).head(64), CubeContract("t1", s.hagan["size"]))


def measure_volumes(cubes, spacings, modality, segmenter=None):
    """A table of what cubes (b, 1, N, N, N) in [-1, 1] hold, one row each.

    CT: `ct.measure` (lung_ml, emphysema_percent, fat_ml, bone_ml; nan where no lung is found). T1: ml of "brain" and of every
    structure in `atlas.STRUCTURES` by the segmenter. ``spacings`` (b, 3) or (3) in mm: a generated cube has none, so give it the
    mean of the real ones.
    """
    spacings = torch.as_tensor(spacings).expand(len(cubes), 3)
    if modality == "ct":
        return pd.DataFrame([measure_chest(cube, mm) for cube, mm in zip(cubes, spacings, strict=True)])
    if segmenter is None:
        raise DataError("structures of a brain are measured by a segmenter; give structure_segmenter(lesson).")
    rows = []
    for cube, labels, mm in zip(cubes, label_structures(segmenter, cubes), spacings, strict=True):
        ml = float(mm.prod()) / 1000
        counts = torch.bincount(labels.flatten(), minlength=len(STRUCTURES)) * ml
        structures = dict(zip(STRUCTURES[1:], counts[1:].tolist(), strict=True))
        rows.append(dict(brain=float(brain_mask(cube).sum() * ml)) | structures)
    return pd.DataFrame(rows)


def brain_mask(cube):
    """The largest connected piece (N, N, N), by shared faces, of what is not background in a T1 cube (1, N, N, N).

    So the specks of a generated background do not count. A blank cube has none.
    """
    inside = (cube[0] > BACKGROUND).numpy()
    pieces, _ = ndimage.label(inside)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return torch.from_numpy(inside & (pieces == sizes.argmax()))


def measure_chest(cube, mm):
    """`ct.measure` of a cube (1, N, N, N) in [-1, 1]; nan where it has no lung."""
    try:
        return ct.measure(to_hu(cube[0]).numpy(), mm.tolist())
    except ValueError:
        return dict.fromkeys(("lung_ml", "emphysema_percent", "fat_ml", "bone_ml"), float("nan"))
