"""Adapt a trained synthesiser to a folder of unlabelled target volumes and write what it makes of them.

    python -m medsynth_lib.training.adaptation --model FOLDER --target FOLDER --out FOLDER

The whole of lesson 04 on data that has no T1 to compare with: so an ensemble says where it disagrees with itself.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from medsynth_lib.data.files.layouts import open_dataset
from medsynth_lib.data.files.nifti import read_case, read_header, write_volume
from medsynth_lib.data.preparation.appearance import apply_curve
from medsynth_lib.data.preparation.contract import Contract, restore
from medsynth_lib.data.simulation.dataset import simulated_dataset
from medsynth_lib.data.simulation.physics import Sequence
from medsynth_lib.data.simulation.scanner import site as scanner_site
from medsynth_lib.experiments.adaptation import study as uda
from medsynth_lib.experiments.lesson_data import complete, with_split
from medsynth_lib.experiments.trained_models import load
from medsynth_lib.files import DataError, atomic
from medsynth_lib.settings import load_settings

FEWEST = 3  # target volumes: with fewer, one patient's tumour is the site's histogram
UNITS = 1000  # of a written T1 where the normalised one is 1
SAFE_PERCENTILE = 95  # of the ensemble's spread at the source: what exceeds it is not to be trusted


def adapt_folder(model, target, out, source=None, scanners=None, svae=None, profile="lesson", seeds=3, steps=None):
    """Adapt, synthesise and write; returns a DataFrame, one row a volume, also written as ``out``/volumes.csv.

    Args:
        model: artefact folder of a trained pix2pix (weights, recipe, contract).
        target: folder of skull-stripped, registered input volumes (any layout that `open_dataset` reads).
        source: the model's training pairs; None simulates those of lesson 04 in this profile.
        scanners: YAML of both scanners' sequences: T1 of the source is mapped by physics to the target's look, inputs get its
            style. Without it only the inputs' histograms are taken over, and the result has the *source's* look.
        svae: artefact folder of a slice-VAE: adds the paper's latent prior.
        seeds: adaptations in the ensemble; each also sees every volume mirrored.
        steps: of an adaptation; None takes the profile's.

    For each volume, in its original grid: NAME_t1.nii.gz (1000 = the contract's upper percentile), NAME_spread.nii.gz
    (standard deviation of the ensemble, same units) and NAME_do_not_trust.nii.gz (1 where that exceeds the spread of 95 % of
    held-out source brain). Raises DataError where model, contract or volumes do not fit, before anything is trained.
    """
    trained = load(Path(model), "given")
    if "generator" not in trained.networks:
        raise DataError(f"{model}: a model of kind {trained.recipe['algorithm']!r}; give a pix2pix generator's folder.")
    contract, settings = trained.contract, load_settings("04", profile, {} if steps is None else {"adapt_steps": steps})
    targets = target_scans(Path(target), contract)
    frame = pd.concat([source_scans(source, contract, settings), targets], ignore_index=True)
    frame.attrs["root"] = Path(target)
    known = read_scanners(scanners) if scanners else {}
    study = uda.Study(frame, contract, settings, "source", "target", scanners=known)
    study.base = trained.networks["generator"]
    method = adaptation_method(bool(scanners), load(Path(svae), "given") if svae else None)
    predictors = []
    for study.seed in range(seeds):
        predictors.append(method(study))
        print(f"adaptation {study.seed + 1} of {seeds}: {study.steps_done} steps", flush=True)
    limit = trusted_spread(predictors, like_target(study, study.tune, bool(scanners)))
    rows = [write_case(row, study.adapt[i], predictors, limit, contract, Path(out)) for i, row in targets.iterrows()]
    table = pd.DataFrame(rows)
    with atomic(Path(out) / "volumes.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.4g")
    return table


def adaptation_method(physics, svae):
    """A function of a Study that makes a predictor, from what is known about the target; ``svae``: a Trained or None."""

    def method(study):
        samples = like_target(study, study.train, physics)
        if physics:
            samples = study.mapped_samples(study.curve(), samples)
        if svae is None:
            return study.adapted(source=samples)
        real = torch.stack([s["y"] for s in samples])
        return study.adapted(source=samples, latent=(svae.networks["vae"].encoder, svae.recipe, real), **uda.LATENT)

    return method


def like_target(study, samples, physics):
    """Source samples with inputs as like the target's as is known how: with ``physics`` in its style, else by histogram."""
    if physics:
        return study.styled(samples)
    return [s | {"x": apply_curve(s["x"], s["mask"], *study.input_quantiles)} for s in samples]


# -- what goes in ----------------------------------------------------------------------------------------------------------


def target_scans(folder, contract):
    """Manifest of the target's volumes; says how they differ from the contract and refuses what cannot fit."""
    inputs = replace(contract, target=None)
    if (folder / "contract.yaml").exists():  # prepared by somebody: then it must be by this contract
        inputs.require(replace(Contract.load(folder / "contract.yaml"), target=None))
    frame = labelled(complete(open_dataset(folder), contract.inputs), "target", "adapt")
    if len(frame) < FEWEST:
        raise DataError(
            f"{folder}: {len(frame)} volume(s) with {contract.inputs}; adaptation needs {FEWEST}: add volumes."
        )
    notes = {note for _, row in frame.iterrows() for note in grid_notes(row, contract)}
    print("\n".join(sorted(notes)) or "the target's volumes have the grid of the contract")
    return frame.reset_index(drop=True)


def source_scans(folder, contract, settings):
    """Manifest of source pairs with the splits train and tune and absolute paths; simulated at site A where none are given."""
    if folder is None:
        expected = (tuple(settings.size), (settings.spacing,) * 3, settings.normalisation)
        if (contract.size, contract.spacing, contract.normalisation) != expected:
            raise DataError(
                f"the model's size, spacing and normalisation {(contract.size, contract.spacing, contract.normalisation)} are "
                f"not those of the simulated source {expected}; give its own training pairs with --source."
            )
        frame = simulated_dataset(settings.counts, tuple(settings.shape), settings.spacing, tuple(settings.sites))
        frame = frame[frame["site"] == "SIMA"]
    else:
        frame = with_split(complete(open_dataset(folder), contract.modalities), seed=0)
    return labelled(frame[frame["split"].isin(("train", "tune"))], "source", None)


def labelled(frame, site, split):
    """The frame with absolute paths, this site's name and, unless None, this split; ``name`` is what files will be called."""
    root, frame = Path(frame.attrs["root"]), frame.copy()
    for modality in uda.segmentation.INPUTS:
        frame[modality] = [str((root / cell).absolute()) if cell else "" for cell in frame[modality]]
    names = frame["subject"] + frame["site"].radd("_").where(frame["site"] != "", "")
    frame = frame.assign(name=names, site=site, seg="", split=split or frame["split"])
    if frame["name"].duplicated().any():
        raise DataError(
            f"{root}: subject {frame['name'][frame['name'].duplicated()].iloc[0]} twice at one site; rename it."
        )
    return frame


def grid_notes(row, contract):
    """How a volume's grid differs from the contract, as sentences; DataError where resampling cannot mend it or the crop cuts.

    A voxel may be a quarter larger than the contract's, and the brain 2 % larger than the crop.
    """
    path = row[contract.inputs[0]]
    image = read_header(path)
    spacing, notes = np.array(image.header.get_zooms()[:3]), []
    if spacing.max() > 1.25 * max(contract.spacing):
        raise DataError(
            f"{path}: voxels of {np.round(spacing, 2).tolist()} mm, the model's are {list(contract.spacing)} mm; a network "
            "cannot sharpen what it never saw: use volumes of that resolution, or train a model for theirs."
        )
    if not np.allclose(sorted(spacing), sorted(contract.spacing), atol=1e-3):
        notes.append(f"spacing {np.round(spacing, 2).tolist()} mm becomes the contract's {list(contract.spacing)} mm")
    case = read_case(row, contract.inputs, labels=False)
    brain = torch.stack([v.as_tensor()[0] != 0 for v in case.values()]).all(0)
    if brain.float().mean() > 0.9:
        raise DataError(
            f"{path}: {100 * float(brain.float().mean()):.0f} % of the voxels are not zero; strip the skull and undo any "
            "z-score: the contract expects scanner units with a background of exact zeros."
        )
    extent = np.ptp(np.argwhere(brain.numpy()), axis=0) * spacing
    room = np.array(contract.size) * contract.spacing
    if (np.sort(extent) > 1.02 * np.sort(room)).any():
        raise DataError(
            f"{path}: the brain is {np.round(extent).tolist()} mm large and the contract's crop {room.tolist()} mm; use a model "
            "with a larger size."
        )
    return notes


def read_scanners(path):
    """{"source": Site, "target": Site} from a YAML file; DataError names what is missing.

    Each scanner has ``field`` (1.5 or 3.0 T), ``slice_mm`` (of the T2) and the sequences t1, t2, flair: ``kind`` (mprage,
    spin_echo, inversion_recovery) and its times in ms, flip angle in degrees, as in `medsynth_lib.data.simulation.physics`.
    """
    try:
        plain = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        sites = {}
        for name in ("source", "target"):
            own = plain[name]
            sequences = [Sequence(own[m].pop("kind"), own[m]) for m in ("t1", "t2", "flair")]
            width = (1, 1, float(own["slice_mm"]))
            sites[name] = scanner_site(name, float(own["field"]), *sequences, width, width, (1, 1, 1), noise=0, bias=0)
            for sequence in sequences:
                uda.protocol.levels(
                    uda.protocol.literature(), sequence, sites[name].field
                )  # fails here, not after training
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path}: not two scanners, source and target, each with field (1.5 or 3.0), slice_mm, t1, t2 and flair "
            f"({type(error).__name__}: {error}); see 'Use it on your own volumes' in README.md."
        ) from error
    return sites


# -- what comes out --------------------------------------------------------------------------------------------------------


def ensemble(predictors, sample):
    """Mean and standard deviation (1, x, y, z) over predictors, each on the sample and on its mirror image (left to right)."""
    mirrored = {k: sample[k].flip(1) for k in ("x", "mask")}
    t1 = torch.stack([v for make in predictors for v in (make(sample), make(mirrored).flip(1))])
    return t1.mean(0), t1.std(0, unbiased=False)


def trusted_spread(predictors, samples):
    """The ensemble's spread that 95 % of held-out source brain stays below."""
    spreads = [ensemble(predictors, s)[1][s["mask"]] for s in samples]
    return float(np.percentile(torch.cat(spreads).numpy(), SAFE_PERCENTILE))


def write_case(row, sample, predictors, limit, contract, out):
    """Write one volume's three NIfTIs in its original grid; returns its row of the table."""
    t1, spread = ensemble(predictors, sample)
    case = read_case(row, contract.inputs, labels=False)
    affine = case[contract.inputs[0]].affine
    doubtful = (spread > limit) & sample["mask"]
    write_volume(out / f"{row['name']}_t1.nii.gz", restore(UNITS * t1, case, contract), affine)
    write_volume(out / f"{row['name']}_spread.nii.gz", restore(UNITS * spread, case, contract), affine)
    write_volume(out / f"{row['name']}_do_not_trust.nii.gz", restore(doubtful, case, contract), affine, dtype="uint8")
    inside = sample["mask"]
    return dict(name=row["name"], mean_t1=UNITS * float(t1[inside].mean()), mean_spread=UNITS * float(spread[inside].mean()),
                do_not_trust_percent=100 * float(doubtful.sum() / inside.sum()))  # fmt: skip


def main(arguments=None):
    """The command line; 0, or 2 with one line on what does not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m medsynth_lib.training.adaptation", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--model", required=True, metavar="FOLDER", help="a trained pix2pix, as train_or_load keeps it")
    parser.add_argument("--target", required=True, metavar="FOLDER", help="unlabelled, skull-stripped target volumes")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="receives the synthetic T1")
    parser.add_argument(
        "--source", metavar="FOLDER", help="the model's training pairs; default: lesson 04's simulated ones"
    )
    parser.add_argument("--scanners", metavar="FILE", help="YAML of both scanners' sequences: maps T1 by physics")
    parser.add_argument("--svae", metavar="FOLDER", help="a trained slice-VAE: adds the paper's latent prior")
    parser.add_argument("--profile", default="lesson", help="steps and rates of lesson 04; default: lesson")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="adaptations in the ensemble; default: 3")
    try:
        print(adapt_folder(**vars(parser.parse_args(arguments))).round(2).to_string(index=False))
    except (DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
