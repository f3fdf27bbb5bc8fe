"""Lesson 09's study of the scores themselves: from which size on does each notice a planted defect?

Test volumes are halved. A defect is planted in one half, and a score compares the halves. Many splits without a defect give the
score's threshold: 95 % of them stay below it. So a defect of size 0 is noticed in one case of twenty.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from torch import Tensor

from medsynth_lib.data.simulation.atlas import STRUCTURES
from medsynth_lib.evaluation import defects
from medsynth_lib.evaluation.extractors import extract
from medsynth_lib.evaluation.generation import nearest_neighbours
from medsynth_lib.evaluation.segmentation import label_structures
from medsynth_lib.evaluation.set_scores import (
    frechet_distance,
    gaussian_kernel,
    median_bandwidth,
    polynomial_kernel,
    precision_recall,
    squared_mmd,
)
from medsynth_lib.experiments.hagan import measure_volumes
from medsynth_lib.experiments.rivals import ORGANS, Study
from medsynth_lib.experiments.sweep import Cell, Group, Sweep
from medsynth_lib.files import fingerprint
from medsynth_lib.settings import Lesson09Settings, load_settings

VERSION = 1  # raise when defects or scores below change
TABLE = "detection"  # notebooks/sweeps/detection.csv
SPLITS = 200  # random halves without a defect
LEVEL = 0.95  # of them a score stays below its threshold

Views = dict[str, np.ndarray]  # what is known of each volume: view -> (n, d)


@dataclass(frozen=True)
class Defect:
    """A defect of growing size."""

    plant: Callable[[Study, Tensor, float], Tensor]  # volumes (n, 1, N, N, N) to volumes
    sizes: tuple[float, ...]
    unit: str


def mode_dropped(study: Study, volumes: Tensor, share: float) -> Tensor:
    """Drop the volumes with the most tissue; others are repeated."""
    return defects.without_mode(volumes, share, volumes.flatten(1).mean(1).tolist())


def volumes_repeated(study: Study, volumes: Tensor, share: float) -> Tensor:
    """Drop volumes at random; others are repeated: the control of `mode_dropped`."""
    return defects.without_mode(volumes, share, np.random.default_rng(0).permutation(len(volumes)))


def hippocampus_shrunk(study: Study, volumes: Tensor, share: float) -> Tensor:
    """Shrink the hippocampus of every brain."""
    labels = label_structures(study.segmenter, volumes)
    return defects.smaller_structure(volumes, share, labels, STRUCTURES.index("hippocampus"))


def slab_shifted(study: Study, volumes: Tensor, voxels: float) -> Tensor:
    """Shift the middle sub-volume, of HA-GAN's depth."""
    return defects.slab_shifted(volumes, int(voxels), int(study.settings.hagan.fraction * volumes.shape[2]))


DEFECTS = {
    "blur": Defect(lambda study, v, size: defects.blurred(v, size), (0.2, 0.3, 0.4, 0.6, 1.0), "sigma, voxels"),
    "noise": Defect(
        lambda study, v, size: defects.noisy(v, size), (0.01, 0.02, 0.05, 0.1, 0.2), "sigma of a range of 2"
    ),
    "other contrast": Defect(
        lambda study, v, size: defects.other_contrast(v, size), (0.02, 0.05, 0.1, 0.2, 0.4), "exponent - 1"
    ),
    "shifted slab": Defect(slab_shifted, (1, 2, 3, 4, 6), "voxels"),
    "mode dropped": Defect(mode_dropped, (0.05, 0.1, 0.2, 0.35, 0.5), "share of the volumes"),
    "volumes repeated": Defect(volumes_repeated, (0.05, 0.1, 0.2, 0.35, 0.5), "share of the volumes"),
    "copies": Defect(
        lambda study, v, size: defects.with_copies(v, size, study.training), (0.1, 0.25, 0.5, 0.75, 1.0), "share"
    ),
    "hippocampus shrunk": Defect(hippocampus_shrunk, (0.1, 0.2, 0.3, 0.5, 0.7), "share of its volume"),
}


def views_of(study: Study, volumes: Tensor) -> Views:
    """Measure what the scores compare.

    Features, volumes of structures in ml, and the distance to the nearest training volume.
    """
    measured = measure_volumes(volumes, study.spacing, study.modality, study.segmenter).fillna(0.0)
    near = nearest_neighbours(volumes, study.training)["distance"]
    found = {"structures": measured.to_numpy(float), "nearness": near.to_numpy(float)[:, None]}
    if study.segmenter is not None:
        found["features"] = extract(study.segmenter, volumes, study.contract).values
    return found


def scores(views: Views) -> dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], float]]]:
    """List the scores: name -> its view, and a function of two arrays.

    Args:
        views: of volumes without a defect; a kernel's bandwidth comes from them. The functions grow with a defect.
    """
    found: dict[str, tuple[str, Callable]] = {
        "W2 of structures": ("structures", frechet_distance),
        "nearness to training volumes": ("nearness", lambda a, b: float(np.median(a) - np.median(b))),
    }
    if "features" in views:
        kernel = gaussian_kernel(median_bandwidth(views["features"]))
        found |= {
            "FID": ("features", frechet_distance),
            "MMD": ("features", partial(squared_mmd, kernel)),
            "KID": ("features", partial(squared_mmd, polynomial_kernel)),
            "1 - precision": ("features", lambda a, b: 1 - precision_recall(a, b)[0]),
            "1 - recall": ("features", lambda a, b: 1 - precision_recall(a, b)[1]),
        }
    return found


def standardised(views: Views, by: Views) -> Views:
    """Bring each column to mean 0 and deviation 1 of the volumes `by`."""
    return {name: (views[name] - of.mean(0)) / (of.std(0) + 1e-12) for name, of in by.items()}


def thresholds(views: Views, seed: int = 0) -> dict[str, float]:
    """Find for each score the value that 95 % of random halves without a defect stay below."""
    rng, found = np.random.default_rng(seed), {}
    halves = [np.array_split(rng.permutation(len(next(iter(views.values())))), 2) for _ in range(SPLITS)]
    for name, (view, score) in scores(views).items():
        found[name] = float(np.quantile([score(views[view][a], views[view][b]) for a, b in halves], LEVEL))
    return found


def detection_of(name: str, study: Study) -> pd.DataFrame:
    """Plant one defect at growing sizes: a row a size and score.

    Args:
        name: of `DEFECTS`.
        study: an organ's.

    Returns:
        defect, size, unit, score, value, threshold, noticed, n of either half.
    """
    defect, volumes = DEFECTS[name], study.real
    raw = views_of(study, volumes)
    sound = standardised(raw, raw)
    limits, half, rows = thresholds(sound), len(volumes) // 2, []
    for size in (0.0, *defect.sizes):
        planted = defect.plant(study, volumes[half:], size) if size else volumes[half:]
        views = standardised(views_of(study, planted), raw)
        for score, (view, distance) in scores(sound).items():
            value = distance(sound[view][:half], views[view])
            about = dict(score=score, value=value, threshold=limits[score], noticed=value > limits[score])
            rows.append(dict(defect=name, size=size, unit=defect.unit) | about | dict(n=len(planted)))
    return pd.DataFrame(rows).assign(organ=ORGANS[study.modality])


def groups(profile: str) -> list[Group]:
    """List the study's cells, one a defect, in one group an organ."""
    settings = load_settings("09", profile)
    return [Group(partial(Study, settings, m), cells(settings, m)) for m in settings.sweep_organs]


def cells(settings: Lesson09Settings, modality: str) -> list[Cell]:
    """List the cells of an organ; only brains have a hippocampus."""
    prepared = [settings.volume_counts, settings.hagan.size, settings.hagan.fraction]
    key = partial(fingerprint, VERSION, prepared, settings.structures, modality, digits=8)
    names = [name for name in DEFECTS if modality == "t1" or name != "hippocampus shrunk"]
    return [
        Cell(f"{ORGANS[modality]}, {name}", key(name, DEFECTS[name].sizes), partial(detection_of, name))
        for name in names
    ]


def arranged(table: pd.DataFrame) -> pd.DataFrame:
    """Sort the merged table by organ, defect and size."""
    order = {name: k for k, name in enumerate(DEFECTS)}
    by = ["organ", "defect", "size"]
    return table.sort_values(by, key=lambda c: c.map(order) if c.name == "defect" else c, kind="stable")


SWEEP = Sweep(TABLE, groups, arranged)
