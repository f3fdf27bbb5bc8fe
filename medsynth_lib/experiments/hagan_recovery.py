"""The volumes of lesson 06: held-out cubes, what a grid costs their structures, and brains with and without a tumour."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import torch

from medsynth_lib.data.preparation.cubes import CubeContract, Cubes, LesionCubes
from medsynth_lib.data.simulation.dataset import simulated_dataset
from medsynth_lib.data.simulation.subject import make_subject
from medsynth_lib.evaluation.recovery import resampling_dice
from medsynth_lib.settings import Lesson06Settings


def first_volumes(cubes: Sequence[Mapping], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the first volumes of a split.

    Args:
        cubes: samples with "x" (1, N, N, N) and "spacing" (3).
        count: how many; all of them where there are fewer.

    Returns:
        Volumes (b, 1, N, N, N) in [-1, 1], and voxel sizes (b, 3) in mm.
    """
    samples = [cubes[k] for k in range(min(count, len(cubes)))]
    return torch.stack([s["x"] for s in samples]), torch.stack([s["spacing"] for s in samples])


def grid_dice(subjects: Iterable[int], settings: Lesson06Settings, contract: CubeContract) -> pd.Series:
    """Average what the cube's grid alone costs the structures of simulated brains.

    Args:
        subjects: numbers of simulated subjects, who are made on a grid twice as fine as a scan's.
        settings: shape and spacing of a scan.
        contract: the preparation of the cube.

    Returns:
        Dice by structure and group of structures.
    """
    fine = max(1.0, settings.spacing / 2)  # mm; the atlas has 1 mm
    shape = tuple(round(n * settings.spacing / fine) for n in settings.shape)
    made = (make_subject(subject, shape, fine, tumour=False) for subject in subjects)
    return pd.DataFrame([resampling_dice(subject, contract) for subject in made]).mean()


def lesion_pairs(settings: Lesson06Settings, contract: CubeContract) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Simulate brains with a tumour, and the same brains without one.

    Args:
        settings: how many, their shape and spacing.
        contract: the preparation of the cube.

    Returns:
        Patients (b, 1, N, N, N) in [-1, 1], their tumour labels (b, 1, N, N, N), and their healthy twins.
    """
    scans = (dict(test=settings.lesions), tuple(settings.shape), settings.spacing, ("A",))
    sick = list(LesionCubes(simulated_dataset(*scans, tumour=True), contract))
    healthy, _ = first_volumes(Cubes(simulated_dataset(*scans, tumour=False), contract), settings.lesions)
    return torch.stack([s["x"] for s in sick]), torch.stack([s["seg"] for s in sick]), healthy
