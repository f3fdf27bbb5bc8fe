"""One domain of lesson 07: a trained HA-GAN, the cubes it learned from, and the factors that are measured in a volume."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.preparation.cubes import to_hu
from medsynth_lib.data.simulation.atlas import STRUCTURES
from medsynth_lib.data.simulation.subject import make_subject, structure_volumes
from medsynth_lib.evaluation import ct
from medsynth_lib.evaluation.hagan_inference import encode, sample
from medsynth_lib.evaluation.segmentation import label_structures
from medsynth_lib.experiments.hagan import brain_mask, lesson_cubes, measure_volumes, trained_hagan
from medsynth_lib.files import atomic, cache_folder, fingerprint
from medsynth_lib.processes import headless, run

OFFSET = 0.1  # percent of emphysema: healthy lungs have none, and log 0 is not a number
FACTORS = {"ct": ("lung", "fat", "bone", "log emphysema"), "t1": ("brain", "hippocampus", "lateral ventricle")}


def factors(table, modality):
    """A table of the lesson's factors: ml, and log(% + 0.1) of emphysema, from one of `measure_volumes` or of the truth."""
    if modality == "t1":
        return table[list(FACTORS["t1"])]
    ml = {name: table[f"{name}_ml"] for name in ("lung", "fat", "bone")}
    return pd.DataFrame(ml | {"log emphysema": np.log(table["emphysema_percent"] + OFFSET)})


@dataclass
class Domain:
    """A generator and what is measured in its volumes.

    ``modality`` "ct" or "t1"; ``splits`` of `Cubes`; ``kind`` "simulated" or "real"; ``depth``: slices of a sub-volume;
    ``spacing``: mean voxel size (3) in mm; ``segmenter``: of T1; ``population``: the measured factors of training cubes, by
    whose mean and standard deviation all factors are standardised.
    """

    modality: str
    splits: dict
    kind: str
    networks: dict
    depth: int
    spacing: torch.Tensor
    segmenter: object = None
    population: pd.DataFrame = None

    @property
    def names(self):
        return FACTORS[self.modality]

    @property
    def noun(self):
        return {"ct": "chests", "t1": "brains"}[self.modality]

    @property
    def device(self):
        """Where the networks are; codes and volumes come and go on the CPU."""
        return next(self.networks["mean G^A"].parameters()).device

    def generate(self, z):
        """Volumes (b, 1, S, S, S) of codes, by the running mean of the generator."""
        return sample(self.networks["mean G^A"], self.networks["mean G^H"], z.to(self.device)).cpu()

    def measured(self, volumes):
        """Factors (b, k) of volumes, not standardised, as a table; nan where a chest has no lung."""
        return factors(measure_volumes(volumes, self.spacing, self.modality, self.segmenter), self.modality)

    def standardised(self, table):
        """A table of factors in standard deviations from the population's mean, (n, k); what never varies keeps its unit."""
        scaled = (table - self.population.mean()) / self.population.std().replace(0, 1)
        return torch.tensor(scaled.to_numpy(), dtype=torch.float32)

    def masks(self, cube):
        """{factor: boolean mask (S, S, S)} of one volume (1, S, S, S); empty ones where a chest has no lung."""
        if self.modality == "t1":
            labels = label_structures(self.segmenter, cube[None])[0]
            inside = {name: labels == STRUCTURES.index(name) for name in self.names[1:]}
            return {"brain": brain_mask(cube)} | inside
        try:
            masks = ct.tissue_masks(to_hu(cube[0]).numpy(), self.spacing.tolist())
        except ValueError:
            masks = dict.fromkeys(("lung", "fat", "bone", "emphysema"), np.zeros(cube.shape[1:], bool))
        return {name: torch.from_numpy(masks[name.removeprefix("log ")]) for name in self.names}

    def measured_codes(self, z, batch=8):
        """Standardised factors (..., k) measured in the volumes of codes (..., d), a few volumes in memory at a time.

        Equal codes, such as the one at which many walks start, are measured once.
        """
        codes, which = z.flatten(0, -2).unique(dim=0, return_inverse=True)
        tables = [self.measured(self.generate(part)) for part in codes.split(batch)]
        return self.standardised(pd.concat(tables))[which].unflatten(0, z.shape[:-1])

    def codes(self, cubes, batch=8):
        """Codes (n, d) of a list of volumes (1, S, S, S) by the encoder."""
        encoders, parts = (self.networks["E^H"], self.networks["E^G"]), torch.stack(cubes).split(batch)
        return torch.cat([encode(*encoders, x.to(self.device), self.depth).cpu() for x in parts])


def open_domain(lesson, modality, real, segmenter=None):
    """A `Domain` by a lesson's settings, with its first ``real`` training cubes (a list) measured, and the `Trained` model."""
    splits, kind = lesson_cubes(lesson, modality)
    trained = trained_hagan(lesson, splits)
    samples = [splits["train"][i] for i in range(min(real, len(splits["train"])))]
    spacing = torch.stack([s["spacing"] for s in samples]).mean(0)
    depth = int(trained.recipe["size"] * trained.recipe["fraction"])
    domain = Domain(modality, splits, kind, trained.networks, depth, spacing, segmenter)
    cubes = [s["x"] for s in samples]
    domain.population = pd.concat([domain.measured(part) for part in torch.stack(cubes).split(8)], ignore_index=True)
    print(
        f"{domain.kind} {modality}: HA-GAN {trained.origin}, {trained.steps} steps; {len(cubes)} volumes measured"
    )
    return domain, cubes, trained


def true_factors(domain, count):
    """Factors (n, k) that the simulator gave the first ``count`` training subjects, standardised; None for real data.

    A cube is stretched to its subject, so that ml are lost; the truth is taken at the mean voxel size, as `measured` is.
    """
    if domain.kind != "simulated":
        return None
    cubes = domain.splits["train"]
    manifest = cubes.manifest.head(count)
    table = manifest.table if domain.modality == "ct" else true_structures(manifest)
    factor = [float(domain.spacing.prod() / cubes[i]["spacing"].prod()) for i in range(len(manifest))]
    ml = [c for c in table.columns if c.endswith("_ml")] if domain.modality == "ct" else list(table.columns)
    table = table.assign(**{c: table[c] * factor for c in ml})
    return domain.standardised(factors(table, domain.modality))


def true_structures(manifest: Manifest) -> pd.DataFrame:
    """Volumes in ml of simulated brains and of their structures; a subject is made once more, which is slow, and kept."""
    scans = manifest.scans()
    path = cache_folder("structures") / f"{fingerprint([scan.identity(()) for scan in scans])}.csv"
    if not path.exists():
        tasks = [(int(scan["subject"]), scan.shape, scan["spacing_mm"]) for scan in scans]
        rows = run(structures_of, tasks, torch.get_num_threads(), None, not headless())
        with atomic(path) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)
    return pd.read_csv(path).assign(brain=manifest.table["brain_ml"].to_numpy())


def structures_of(seed, shape, spacing):
    return structure_volumes(make_subject(seed, shape, spacing, tumour=False))
