"""Lesson 09's study: HA-GAN, its ablations and its rivals on the same simulated volumes (HA-GAN paper, Tables II to IV).

A contender is trained with as many steps as HA-GAN and, where `steps_of_equal_time` says how many steps these are, with as
many CPU minutes. Each is scored against test volumes.
Three contenders need no training and say what a score is worth: the mean volume, a PCA sampler, and copies of training volumes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from medsynth_lib.data.preparation.cubes import CubeContract, CubesOnDisk
from medsynth_lib.evaluation import detail
from medsynth_lib.evaluation.extractors import extract
from medsynth_lib.evaluation.generation import generate, in_batches, nearest_neighbours, pairwise_ms_ssim
from medsynth_lib.evaluation.set_scores import (
    Features,
    frechet_distance,
    gaussian_kernel,
    median_bandwidth,
    mmd_p_value,
    polynomial_kernel,
    precision_recall,
    scored,
    squared_mmd,
)
from medsynth_lib.experiments.hagan import TrainingSubjects, lesson_cubes, measure_volumes, structure_segmenter
from medsynth_lib.experiments.sweep import Cell, Group, Sweep
from medsynth_lib.experiments.trained_models import ALGORITHMS, Trained, train_or_load
from medsynth_lib.files import fingerprint
from medsynth_lib.settings import (
    AlphaGANSettings,
    BaselineSettings,
    DeterministicStartSettings,
    HAGANSettings,
    JointHAGANSettings,
    Lesson09Settings,
    ProgressiveGANSettings,
    PublishedAlphaGANSettings,
    PublishedVAEGANSettings,
    PublishedWGANSettings,
    RepairedHAGANSettings,
    TrainingSettings,
    VAEGANSettings,
    WGANSettings,
    WithoutEncoderSettings,
    WithoutLowBranchSettings,
    load_settings,
    recast,
)

VERSION = 1  # raise when trainings or scores below change: rows of another version are not reused
TABLE = "rivals"  # notebooks/sweeps/rivals.csv
ORGANS = {"t1": "brain", "ct": "chest"}
BUDGETS = ("equal steps", "equal time")

FORMS: dict[str, type[HAGANSettings]] = {
    "HA-GAN as printed": HAGANSettings,
    "HA-GAN as printed, with remedies": RepairedHAGANSettings,
    "HA-GAN, joint": JointHAGANSettings,
    "HA-GAN w/o low-res branch": WithoutLowBranchSettings,
    "HA-GAN w/o encoder": WithoutEncoderSettings,
    "HA-GAN w/ deterministic r": DeterministicStartSettings,
}
RIVALS: dict[str, type[BaselineSettings]] = {
    "WGAN": WGANSettings,
    "WGAN as published": PublishedWGANSettings,
    "VAE-GAN": VAEGANSettings,
    "VAE-GAN as published": PublishedVAEGANSettings,
    "alpha-GAN": AlphaGANSettings,
    "alpha-GAN as published": PublishedAlphaGANSettings,
    "Progressive GAN": ProgressiveGANSettings,
}
UNTRAINED = ("mean volume", "PCA", "copies")
MAIN = "HA-GAN, repaired"  # whose number of steps and CPU minutes the others get


# -- contenders ----------------------------------------------------------------------------------------------------------------


def contenders(settings: Lesson09Settings) -> dict[str, TrainingSettings]:
    """List the trained contenders, with the steps, the batch and the widths of HA-GAN.

    Returns:
        Name -> settings of its training with equal steps.
    """
    hagan = settings.hagan
    found: dict[str, TrainingSettings] = {MAIN: hagan}
    found |= {name: recast(hagan, form) for name, form in FORMS.items()}
    shared = {name: getattr(hagan, name) for name in ("size", "latent", "steps", "batch_size", "validate_every")}
    for name, rival in RIVALS.items():
        # Progressive GAN's finest layer has 16 channels where the others have 64
        width = settings.rival_width // 4 if name == "Progressive GAN" else settings.rival_width
        about: dict[str, Any] = dict(width=width, widest=8 * settings.rival_width, lean=True)
        found[name] = rival(learning_rate=settings.rival_learning_rate, **about, **shared)
    return found


def training_of(settings: Lesson09Settings, name: str, budget: str, seed: int) -> TrainingSettings:
    """Return the settings of one training."""
    training = replace(contenders(settings)[name], seed=seed)
    if budget == "equal time":
        training = replace(training, steps=settings.steps_of_equal_time[name])
    return training


def budgets(settings: Lesson09Settings) -> tuple[str, ...]:
    """List the budgets: equal time only where its steps are known of every contender.

    Raises:
        ValueError: where they are known of some contenders only, or of an unknown one.
    """
    known = set(settings.steps_of_equal_time)
    if known and known != set(contenders(settings)):
        raise ValueError(f"steps_of_equal_time: {sorted(known ^ set(contenders(settings)))} are missing or unknown")
    return BUDGETS if known else BUDGETS[:1]


def draw(trained: Trained, n: int, seed: int) -> Tensor:
    """Draw volumes of a trained contender: (n, 1, S, S, S) in [-1, 1]."""
    z = torch.randn(n, trained.settings.latent, generator=torch.Generator().manual_seed(seed))
    if isinstance(trained.settings, HAGANSettings):
        return generate(trained.networks, z)
    return in_batches(trained.networks["G"], z).clamp(-1, 1)  # Progressive GAN's last layer has no bounds


def draw_untrained(name: str, training: Tensor, n: int, latent: int, seed: int) -> Tensor:
    """Draw volumes without a network.

    Args:
        name: one of `UNTRAINED`.
        training: volumes (m, 1, S, S, S).
        n: how many.
        latent: components of the PCA, at most m - 1.
        seed: of the draw.

    Returns:
        (n, 1, S, S, S) in [-1, 1]: the mean volume n times; Gaussian scores of principal components; or training volumes.
    """
    if name == "mean volume":
        return training.mean(0, keepdim=True).repeat(n, 1, 1, 1, 1)
    rng = np.random.default_rng(seed)
    if name == "copies":
        return training[torch.from_numpy(rng.permutation(len(training))[:n])]
    flat = training.flatten(1).numpy()
    pca = PCA(min(latent, len(flat) - 1), whiten=True, random_state=seed).fit(flat)
    codes = rng.standard_normal((n, pca.n_components_)).astype(np.float32)
    return torch.from_numpy(pca.inverse_transform(codes)).view(n, *training.shape[1:]).clamp(-1, 1)


# -- what one organ's cells share ----------------------------------------------------------------------------------------------


class Study:
    """One organ's volumes, the extractor, and what is measured of the test volumes once.

    Args:
        settings: of lesson 09.
        modality: "t1" or "ct".
    """

    def __init__(self, settings: Lesson09Settings, modality: str) -> None:
        self.settings, self.modality = settings, modality
        self.contract = CubeContract(modality, settings.hagan.size)
        self.lesson = SimpleNamespace(settings=settings, data_dir=None, seed=0, notebook="09")

    @cached_property
    def splits(self) -> dict[str, CubesOnDisk]:
        """Simulated cubes by split."""
        return lesson_cubes(self.lesson, self.modality)[0]

    @cached_property
    def subjects(self) -> TrainingSubjects:
        """The training volumes."""
        return TrainingSubjects(self.settings, self.contract)

    @cached_property
    def segmenter(self) -> torch.nn.Module | None:
        """The segmenter of structures: the extractor of brains."""
        return structure_segmenter(self.lesson) if self.modality == "t1" else None

    @cached_property
    def real(self) -> Tensor:
        """Test volumes (n, 1, S, S, S)."""
        return stacked(self.splits["test"])

    @cached_property
    def training(self) -> Tensor:
        """The first training volumes, as many as the lesson looks at."""
        return stacked(self.splits["train"])

    @cached_property
    def spacing(self) -> Tensor:
        """Mean voxel size (3) in mm of the test volumes, which generated ones are taken to have."""
        return torch.stack([sample["spacing"] for sample in self.splits["test"]]).mean(0)

    def views(self, volumes: Tensor) -> dict[str, Features]:
        """Return the features that sets are compared by.

        They are those of the extractor, "FID", and the volumes of structures in ml, "W2".
        """
        table = measure_volumes(volumes, self.spacing, self.modality, self.segmenter).fillna(0.0)  # no lung: 0 ml
        measured = Features(table.to_numpy(float), "structure volumes", repr(self.contract))
        return ({"FID": extract(self.segmenter, volumes, self.contract)} if self.segmenter else {}) | {"W2": measured}

    @cached_property
    def of_real(self) -> dict[str, Features]:
        """The views of the test volumes."""
        return self.views(self.real)


def stacked(cubes: CubesOnDisk) -> Tensor:
    """Stack all volumes of a split: (n, 1, S, S, S)."""
    return torch.stack([cubes[i]["x"] for i in range(len(cubes))])


def score(study: Study, volumes: Tensor, seed: int) -> pd.DataFrame:
    """Score generated volumes against an organ's test volumes.

    Args:
        study: the organ's.
        volumes: (n, 1, S, S, S) in [-1, 1].
        seed: of subsets and permutations.

    Returns:
        One row a score: score, value, floor (real against real), low and high (95 % of the comparisons), n, extractor, and p
        where there is a test.
    """
    rows, views = [], study.views(volumes)
    for view, real in study.of_real.items():
        rows += set_scores(view, standardised(real, real), standardised(views[view], real), study.settings, seed)
    return pd.DataFrame([*rows, *volume_scores(study, volumes, seed)])


def standardised(features: Features, real: Features) -> Features:
    """Bring each feature to the mean 0 and the deviation 1 of the real volumes'."""
    deviation = real.values.std(0) + 1e-12
    return replace(features, values=(features.values - real.values.mean(0)) / deviation)


def set_scores(view: str, real: Features, fake: Features, settings: Lesson09Settings, seed: int) -> list[dict]:
    """Score one view by the Frechet distance.

    The extractor's features are also compared by kernels and by neighbours.
    """
    kernel = gaussian_kernel(median_bandwidth(real.values))
    distances: dict[str, Callable] = {view: frechet_distance}
    if view == "FID":
        distances |= {"MMD": partial(squared_mmd, kernel), "KID": partial(squared_mmd, polynomial_kernel)}
        distances |= {
            "precision": lambda a, b: precision_recall(a, b)[0],
            "recall": lambda a, b: precision_recall(a, b)[1],
        }
    rows = []
    for name, distance in distances.items():
        found = scored(name, distance, real, fake, seed=seed)
        low, high = found.interval
        about = dict(n=found.n, extractor=found.extractor)
        rows.append(dict(score=name, value=found.value, floor=found.floor, low=low, high=high) | about)
        if name == "MMD":
            rows[-1]["p"] = mmd_p_value(kernel, real.values, fake.values, settings.permutations, seed)
    return rows


def volume_scores(study: Study, volumes: Tensor, seed: int) -> list[dict]:
    """Score volumes as they are: detail, diversity, and how near they come to training volumes."""
    real, n = study.real, len(volumes)
    ratios = {
        f"{f.__name__} / real": f(volumes) / f(real) for f in (detail.laplacian_energy, detail.spread, detail.lattice)
    }
    rows = [dict(score=name, value=value, n=n) for name, value in ratios.items()]
    pairs = {
        "MS-SSIM": lambda v: float(pairwise_ms_ssim(v, seed=seed).mean()),
        "distance to a training volume": lambda v: nearest_neighbours(v, study.training)["distance"].median(),
    }
    return rows + [dict(score=name, value=f(volumes), floor=f(real), n=n) for name, f in pairs.items()]


# -- the sweep -----------------------------------------------------------------------------------------------------------------


def groups(profile: str) -> list[Group]:
    """List the sweep's cells, one group an organ: all with one seed before the next."""
    settings = load_settings("09", profile)
    return [Group(partial(Study, settings, m), cells(settings, m)) for m in settings.sweep_organs]


def cells(settings: Lesson09Settings, modality: str) -> list[Cell]:
    """List the cells of an organ: contenders without training, then each training."""
    organ = ORGANS[modality]
    scored_by = [settings.samples, settings.permutations, settings.volume_counts, settings.structures]
    key = partial(fingerprint, VERSION, scored_by, modality, digits=8)
    found = [Cell(f"{organ}, {name}", key(name), partial(run_untrained, name)) for name in UNTRAINED]
    for seed in settings.sweep_seeds:
        for budget in budgets(settings):
            for name in contenders(settings):
                training = training_of(settings, name, budget, seed)
                version = ALGORITHMS[training.algorithm].version
                title = f"{organ}, {name}, {budget}, seed {seed}"
                run = partial(run_cell, name, budget, seed)
                found.append(Cell(title, key(training.algorithm, training, version, budget), run))
    return found


def run_untrained(name: str, study: Study) -> pd.DataFrame:
    """Score a contender that needs no training."""
    s = study.settings
    volumes = draw_untrained(name, study.training, s.samples, s.hagan.latent, seed=0)
    return score(study, volumes, 0).assign(organ=ORGANS[study.modality], contender=name, budget="", seed=0)


def run_cell(name: str, budget: str, seed: int, study: Study) -> pd.DataFrame:
    """Train one contender, or go on with its training, and score its samples."""
    training = training_of(study.settings, name, budget, seed)
    trained = train_or_load(f"rival-{ORGANS[study.modality]}", training, study.subjects, study.splits["tune"])
    rows = score(study, draw(trained, study.settings.samples, seed), seed)
    about = dict(organ=ORGANS[study.modality], contender=name, budget=budget, seed=seed, steps=trained.steps)
    return rows.assign(**about, minutes=trained.history["seconds"].iloc[-1] / 60)


def arranged(table: pd.DataFrame) -> pd.DataFrame:
    """Sort the merged table by organ, budget, contender and seed."""
    order = {name: k for k, name in enumerate([*contenders(Lesson09Settings()), *UNTRAINED])}
    by = ["organ", "budget", "contender", "seed"]
    return table.sort_values(by, key=lambda c: c.map(order) if c.name == "contender" else c, kind="stable")


SWEEP = Sweep(TABLE, groups, arranged)
