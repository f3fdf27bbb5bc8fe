"""One domain of lesson 07: a trained HA-GAN, the cubes it learned from, and the factors that are measured in a volume."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from medsynth_lib.data.files.manifest import SHAPE, Manifest
from medsynth_lib.data.files.published import FEWEST
from medsynth_lib.data.preparation.cubes import CubesOnDisk, to_hu
from medsynth_lib.data.simulation.atlas import STRUCTURES
from medsynth_lib.data.simulation.subject import make_subject, structure_volumes
from medsynth_lib.evaluation import ct
from medsynth_lib.evaluation.hagan_inference import encode, sample
from medsynth_lib.evaluation.segmentation import label_structures
from medsynth_lib.experiments.hagan import brain_mask, lesson_cubes, measure_volumes, trained_hagan
from medsynth_lib.experiments.trained_models import Trained
from medsynth_lib.files import DataError, atomic, cache_folder, fingerprint
from medsynth_lib.processes import headless, run

OFFSET = 0.1  # percent of emphysema: healthy lungs have none, and log 0 is not a number
FACTORS = {"ct": ("lung", "fat", "bone", "log emphysema"), "t1": ("brain", "hippocampus", "lateral ventricle")}
TRUTH = {  # columns of a simulated manifest that the truth is made of
    "ct": {"lung_ml", "fat_ml", "bone_ml", "emphysema_percent"},
    "t1": {"brain_ml", "spacing_mm", *SHAPE},
}
FEWEST_MEASURED = FEWEST["07"]["train"]
NOUNS = {"ct": "chests", "t1": "brains"}
AT_A_TIME = 8  # volumes in memory


def factors(table: pd.DataFrame, modality: str) -> pd.DataFrame:
    """Return the lesson's factors: volumes in ml, and log(% + 0.1) of emphysema.

    Args:
        table: of `measure_volumes`, or of the simulator's truth.
        modality: "ct" or "t1".
    """
    if modality == "t1":
        return table[list(FACTORS["t1"])]
    ml = {name: table[f"{name}_ml"] for name in ("lung", "fat", "bone")}
    return pd.DataFrame(ml | {"log emphysema": np.log(table["emphysema_percent"] + OFFSET)})


@dataclass(frozen=True)
class Domain:
    """A generator and what is measured in its volumes.

    Codes and volumes come and go on the CPU. Factors are standardised by mean and standard deviation of the population.
    """

    modality: str  # "ct" or "t1"
    splits: dict[str, CubesOnDisk]  # cubes by split
    kind: str  # "simulated" or "real"
    networks: dict[str, nn.Module]  # of the trained HA-GAN
    depth: int  # slices of a sub-volume
    spacing: Tensor  # mean voxel size (3) in mm
    segmenter: nn.Module | None = None  # of T1
    population: pd.DataFrame | None = None  # measured factors of training cubes

    @property
    def names(self) -> tuple[str, ...]:
        """The factors that are measured."""
        return FACTORS[self.modality]

    @property
    def noun(self) -> str:
        """What the volumes are."""
        return NOUNS[self.modality]

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.networks["mean G^A"].parameters()).device

    def generate(self, z: Tensor) -> Tensor:
        """Return volumes (b, 1, S, S, S) of codes (b, d), by the running mean of the generator."""
        return sample(self.networks["mean G^A"], self.networks["mean G^H"], z.to(self.device)).cpu()

    def measured(self, volumes: Tensor) -> pd.DataFrame:
        """Measure factors of volumes (b, 1, S, S, S), in their units; nan for a chest without lung."""
        return factors(measure_volumes(volumes, self.spacing, self.modality, self.segmenter), self.modality)

    def standardised(self, table: pd.DataFrame) -> Tensor:
        """Return factors (n, k) in standard deviations from the population's mean.

        A factor that never varies keeps its unit.
        """
        scaled = (table - self.population.mean()) / self.population.std().replace(0, 1)
        return torch.tensor(scaled.to_numpy(), dtype=torch.float32)

    def masks(self, cube: Tensor) -> dict[str, Tensor]:
        """Mark each factor in a volume (1, S, S, S); masks are empty where a chest has no lung.

        Returns:
            Boolean masks (S, S, S) by factor.
        """
        if self.modality == "t1":
            labels = label_structures(self.segmenter, cube[None])[0]
            inside = {name: labels == STRUCTURES.index(name) for name in self.names[1:]}
            return {"brain": brain_mask(cube)} | inside
        try:
            masks = ct.tissue_masks(to_hu(cube[0]).numpy(), self.spacing.tolist())
        except ValueError:
            masks = dict.fromkeys(("lung", "fat", "bone", "emphysema"), np.zeros(cube.shape[1:], bool))
        return {name: torch.from_numpy(masks[name.removeprefix("log ")]) for name in self.names}

    def measured_codes(self, z: Tensor) -> Tensor:
        """Measure the standardised factors (..., k) of the volumes of codes (..., d).

        Equal codes, such as the one at which many walks start, are measured once.

        Args:
            z: codes.
        """
        codes, which = z.flatten(0, -2).unique(dim=0, return_inverse=True)
        tables = [self.measured(self.generate(part)) for part in codes.split(AT_A_TIME)]
        return self.standardised(pd.concat(tables))[which].unflatten(0, z.shape[:-1])

    def codes(self, cubes: Sequence[Tensor]) -> Tensor:
        """Return the encoder's codes (n, d) of volumes (1, S, S, S), a few in memory at a time."""
        encoders, parts = (self.networks["E^H"], self.networks["E^G"]), torch.stack(list(cubes)).split(AT_A_TIME)
        return torch.cat([encode(*encoders, x.to(self.device), self.depth).cpu() for x in parts])


def open_domain(
    lesson: Any, modality: str, real: int, segmenter: nn.Module | None = None
) -> tuple[Domain, list[Tensor], Trained]:
    """Open a domain by a lesson's settings, and measure its first training cubes.

    Args:
        lesson: a `course.Lesson`.
        modality: "ct" or "t1".
        real: how many training cubes are measured, at most.
        segmenter: of `structure_segmenter`, for T1.

    Returns:
        The domain, the cubes (1, S, S, S), and the trained model.

    Raises:
        DataError: where fewer than `FEWEST_MEASURED` of the cubes can be measured.
    """
    splits, kind = lesson_cubes(lesson, modality)
    trained = trained_hagan(lesson, splits)
    samples = [splits["train"][i] for i in range(min(real, len(splits["train"])))]
    cubes, spacing = [s["x"] for s in samples], torch.stack([s["spacing"] for s in samples]).mean(0)
    depth = int(trained.settings.size * trained.settings.fraction)
    domain = Domain(modality, splits, kind, trained.networks, depth, spacing, segmenter)
    population = pd.concat([domain.measured(part) for part in torch.stack(cubes).split(8)], ignore_index=True)
    require_measured(population, domain)
    print(f"{kind} {modality}: HA-GAN {trained.origin}, {trained.steps} steps; {len(cubes)} volumes measured")
    return replace(domain, population=population), cubes, trained


def require_measured(population: pd.DataFrame, domain: Domain) -> None:
    """Raise DataError where too few training volumes can be measured to fit a direction."""
    found = int(np.isfinite(population.to_numpy()).all(1).sum())
    if found < FEWEST_MEASURED:
        raise DataError(
            f"{domain.splits['train'].manifest.root}: {', '.join(domain.names)} can be measured in {found} of "
            f"{len(population)} training {domain.noun}, but lesson 07 needs at least {FEWEST_MEASURED}; add {domain.noun}, "
            "or check that the whole organ is in view."
        )


def log_spirometry(manifest: Manifest) -> dict[str, np.ndarray]:
    """Return the logarithms of the patients' FEV1pp and FEV1/FVC, by Table VII's names.

    A value is nan where it is missing, no number or not above 0. A quantity that the manifest does not have is left out.
    """
    named = {"log FEV1pp": "fev1pp", "log FEV1/FVC": "fev1_fvc"}
    known = {k: pd.to_numeric(manifest.table[c], errors="coerce") for k, c in named.items() if c in manifest.table}
    return {name: np.log(values.where(values > 0)).to_numpy(float) for name, values in known.items()}


def true_factors(domain: Domain, count: int) -> Tensor | None:
    """Return the standardised factors (n, k) that the simulator gave training subjects.

    A cube is stretched to its subject, so that ml are lost. The truth is taken at the mean voxel size, as measurements are.

    Args:
        domain: whose training subjects.
        count: n, how many of them, from the first on.

    Returns:
        None for scans that do not come from the simulator with their truth.
    """
    cubes = domain.splits["train"]
    manifest = cubes.manifest.head(count)
    if not manifest.simulated or not TRUTH[domain.modality] <= set(manifest.table):
        return None  # a look-alike's images are simulated, too, but nobody wrote down their truth
    table = manifest.table if domain.modality == "ct" else true_structures(manifest)
    factor = [float(domain.spacing.prod() / cubes[i]["spacing"].prod()) for i in range(len(manifest))]
    ml = [c for c in table.columns if c.endswith("_ml")] if domain.modality == "ct" else list(table.columns)
    table = table.assign(**{c: table[c] * factor for c in ml})
    return domain.standardised(factors(table, domain.modality))


def true_structures(manifest: Manifest) -> pd.DataFrame:
    """Return the volumes in ml of simulated brains and of their structures.

    A manifest does not hold them: a subject is simulated once more, which is slow. The cache keeps them.
    """
    scans = manifest.scans()
    path = cache_folder("structures") / f"{fingerprint([scan.identity(()) for scan in scans])}.csv"
    if not path.exists():
        tasks = [(int(scan["subject"]), scan.shape, scan["spacing_mm"]) for scan in scans]
        rows = run(structures_of, tasks, torch.get_num_threads(), path.parent, not headless())
        with atomic(path) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)
    return pd.read_csv(path).assign(brain=manifest.table["brain_ml"].to_numpy())


def structures_of(seed: int, shape: tuple[int, int, int], spacing: float) -> dict[str, float]:
    """Simulate a subject's brain without a tumour; return the volumes of its structures in ml."""
    return structure_volumes(make_subject(seed, shape, spacing, tumour=False))
