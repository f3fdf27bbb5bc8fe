"""Adapt a trained synthesiser to a folder of unlabelled target volumes, and write the T1 that it makes of them.

This is lesson 04 on data that have no T1 to compare with. So an ensemble says where it disagrees with itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medsynth_lib.data.files.manifest import Manifest, Scan
from medsynth_lib.data.files.nifti import read_case, write_volume
from medsynth_lib.data.preparation.contract import Contract, restore
from medsynth_lib.experiments.adaptation.direction import Direction, Sample
from medsynth_lib.experiments.adaptation.methods import RHO
from medsynth_lib.experiments.adaptation.own_scans import read_scanners, source_scans, target_scans
from medsynth_lib.experiments.adaptation.recipes import Latent, course
from medsynth_lib.experiments.adaptation.study import Predictor, Study, make_study
from medsynth_lib.experiments.adaptation.target_physics import TargetPhysics
from medsynth_lib.experiments.trained_models import Trained, load
from medsynth_lib.files import DataError, atomic
from medsynth_lib.settings import Lesson04Settings

UNITS = 1000  # of a written T1 where the normalised one is 1
SAFE_PERCENTILE = 95  # of the ensemble's spread at the source: what exceeds it is not to be trusted


def adapt_folder(
    model: Path | str,
    target: Path | str,
    out: Path | str,
    settings: Lesson04Settings,
    source: Path | str | None = None,
    scanners: Path | str | None = None,
    svae: Path | str | None = None,
    seeds: int = 3,
) -> pd.DataFrame:
    """Adapt a model to a folder of volumes, synthesise their T1 and write it.

    For each volume, in its original grid: NAME_t1.nii.gz (1000 is the contract's upper percentile), NAME_spread.nii.gz
    (standard deviation of the ensemble, same units) and NAME_do_not_trust.nii.gz (1 where the spread exceeds that of 95 %
    of held-out source brain).

    Args:
        model: artefact folder of a trained pix2pix.
        target: folder of skull-stripped, registered input volumes, in any layout that `open_dataset` reads.
        out: receives the files.
        settings: of lesson 04: steps and rates, and the simulated source where no other is given.
        source: folder of the model's training pairs; None simulates those of lesson 04.
        scanners: YAML of both scanners' sequences. By these, T1 of the source gets the target's look, and inputs its style.
            None: inputs get the target's histogram alone, and the result has the source's look.
        svae: artefact folder of a slice-VAE, which adds the paper's latent loss.
        seeds: adaptations in the ensemble; each also sees every volume mirrored.

    Returns:
        A row a volume, also written as volumes.csv.

    Raises:
        DataError: where model, contract or volumes do not fit, before anything is trained.
    """
    trained = load(Path(model), "given")
    if "generator" not in trained.networks:
        kind = trained.settings.algorithm
        raise DataError(f"{model}: a model of kind {kind!r}; give the folder of a pix2pix generator.")
    targets = target_scans(Path(target), trained.contract)
    pairs = source_scans(Path(source) if source else None, trained.contract, settings)
    both = Manifest(pd.concat([pairs.table, targets.table], ignore_index=True), Path(target))
    known = read_scanners(scanners) if scanners else {}
    direction = Direction(both, trained.contract, "source", "target", known)
    physics, vae = TargetPhysics(direction), load(Path(svae), "given") if svae else None
    studies = [make_study(direction, settings, k, trained.networks["generator"], physics) for k in range(seeds)]
    predictors = []
    for study in studies:
        predictors.append(adapted(study, bool(scanners), vae))
        print(f"adaptation {study.seed + 1} of {seeds}: {predictors[-1].steps} steps", flush=True)
    limit = trusted_spread(predictors, like_target(studies[0], direction.tune, bool(scanners)))
    return write_all(targets, direction, predictors, limit, Path(out))


def write_all(
    targets: Manifest, direction: Direction, predictors: Sequence[Predictor], limit: float, out: Path
) -> pd.DataFrame:
    """Write what predictors make of all target volumes, and volumes.csv; return its table.

    Args:
        targets: the target's scans.
        direction: their prepared volumes are its adaptation set.
        predictors: of the ensemble.
        limit: spread from which a voxel is not to be trusted.
        out: folder of the files.
    """
    volumes = zip(targets.scans(), direction.adapt, strict=True)
    rows = [write_case(scan, sample, predictors, limit, direction.contract, out) for scan, sample in volumes]
    table = pd.DataFrame(rows)
    with atomic(out / "volumes.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.4g")
    return table


def adapted(study: Study, physics: bool, svae: Trained | None) -> Predictor:
    """Adapt the model by what is known about the target.

    Args:
        study: data and models.
        physics: whether the scanners' sequences are known.
        svae: a trained slice-VAE, or None for no latent loss.
    """
    samples = like_target(study, study.direction.train, physics)
    if physics:
        samples = study.physics.mapped_samples(study.physics.curve(), samples)
    if svae is None:
        return course(study, source=samples)
    real = torch.stack([s["y"] for s in samples])
    return course(study, Latent(svae.networks["vae"].encoder, svae.settings, real), source=samples, rho=RHO)


def like_target(study: Study, samples: Sequence[Sample], physics: bool) -> list[Sample]:
    """Give source inputs the target's style where the physics is known, else its histogram."""
    return study.style.styled(samples) if physics else study.style.matched(samples)


def ensemble(predictors: Sequence[Predictor], sample: Sample) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and SD (1, x, y, z) over predictors, on a sample and its mirror image."""
    mirrored = {k: sample[k].flip(1) for k in ("x", "mask")}  # left to right
    t1 = torch.stack([v for make in predictors for v in (make(sample), make(mirrored).flip(1))])
    return t1.mean(0), t1.std(0, unbiased=False)


def trusted_spread(predictors: Sequence[Predictor], samples: Sequence[Sample]) -> float:
    """Return the spread of the ensemble that 95 % of held-out source brain stays below."""
    spreads = [ensemble(predictors, s)[1][s["mask"]] for s in samples]
    return float(np.percentile(torch.cat(spreads).numpy(), SAFE_PERCENTILE))


def write_case(
    scan: Scan, sample: Sample, predictors: Sequence[Predictor], limit: float, contract: Contract, out: Path
) -> dict[str, Any]:
    """Write one volume's three NIfTIs in its original grid; return its row of the table."""
    t1, spread = ensemble(predictors, sample)
    case = read_case(scan, contract.inputs, labels=False)
    affine, inside, name = case[contract.inputs[0]].affine, sample["mask"], scan["name"]
    doubtful = (spread > limit) & inside
    write_volume(out / f"{name}_t1.nii.gz", restore(UNITS * t1, case, contract), affine)
    write_volume(out / f"{name}_spread.nii.gz", restore(UNITS * spread, case, contract), affine)
    write_volume(out / f"{name}_do_not_trust.nii.gz", restore(doubtful, case, contract), affine, dtype="uint8")
    return dict(
        name=name,
        mean_t1=UNITS * float(t1[inside].mean()),
        mean_spread=UNITS * float(spread[inside].mean()),
        do_not_trust_percent=100 * float(doubtful.sum() / inside.sum()),
    )
