"""What goes into an adaptation to one's own volumes: the target's scans, the source's pairs, and both scanners."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml

from medsynth_lib.data.files.layouts import open_dataset
from medsynth_lib.data.files.manifest import Manifest, Scan
from medsynth_lib.data.files.nifti import read_case, read_header
from medsynth_lib.data.files.selection import complete
from medsynth_lib.data.files.splits import with_split
from medsynth_lib.data.preparation.contract import Contract, cut_off
from medsynth_lib.data.simulation import protocol
from medsynth_lib.data.simulation.dataset import simulated_dataset
from medsynth_lib.data.simulation.physics import Sequence
from medsynth_lib.data.simulation.scanner import Site
from medsynth_lib.data.simulation.scanner import site as scanner_site
from medsynth_lib.files import DataError
from medsynth_lib.settings import Lesson04Settings
from medsynth_lib.training.segmentation import INPUTS

FEWEST = 3  # target volumes: with fewer, one patient's tumour is the site's histogram
COARSER = 1.25  # how much a voxel may be larger than the contract's


def target_scans(folder: Path, contract: Contract) -> Manifest:
    """Find the target's volumes and print how they differ from the contract.

    Args:
        folder: of skull-stripped, registered volumes, in any layout that `open_dataset` reads.
        contract: of the model.

    Raises:
        DataError: for fewer than `FEWEST` volumes, and for one that cannot fit.
    """
    inputs = replace(contract, target=None)
    if (folder / "contract.yaml").exists():  # volumes that were prepared before: then it must be by this contract
        inputs.require(replace(Contract.load(folder / "contract.yaml"), target=None))
    manifest = labelled(complete(open_dataset(folder), contract.inputs), "target", "adapt")
    if len(manifest) < FEWEST:
        raise DataError(
            f"{folder}: {len(manifest)} volume(s) with {contract.inputs}; adaptation needs {FEWEST}: add volumes."
        )
    notes = {note for scan in manifest.scans() for note in grid_notes(scan, contract)}
    print("\n".join(sorted(notes)) or "the target's volumes have the grid of the contract")
    return manifest


def source_scans(folder: Path | None, contract: Contract, settings: Lesson04Settings) -> Manifest:
    """Find the source's training and tuning pairs.

    Args:
        folder: of the pairs; None simulates those of lesson 04 at site A.
        contract: of the model.
        settings: of lesson 04.

    Raises:
        DataError: where pairs would have to be simulated for a model that did not learn from such pairs.
    """
    if folder is not None:
        manifest = with_split(complete(open_dataset(folder), contract.modalities), seed=0)
    else:
        require_simulated(contract, settings)
        manifest = simulated_dataset(settings.counts, settings.shape, settings.spacing, settings.sites).select(
            site="SIMA"
        )
    return labelled(manifest.select(split=("train", "tune")), "source", None)


def require_simulated(contract: Contract, settings: Lesson04Settings) -> None:
    """Raise DataError unless a model's contract is that of the simulated pairs."""
    expected = (tuple(settings.size), (settings.spacing,) * 3, settings.normalisation)
    found = (contract.size, contract.spacing, contract.normalisation)
    if found != expected:
        raise DataError(
            f"the model's size, spacing and normalisation {found} are not those of the simulated source {expected}; "
            "give its own training pairs with --source."
        )


def labelled(manifest: Manifest, site: str, split: str | None) -> Manifest:
    """Return a manifest with absolute paths, one site, no labels, and each scan's name.

    Args:
        manifest: scans of any sites.
        site: the one that all of them get.
        split: of all of them; None keeps theirs.

    Raises:
        DataError: for a subject that is there twice at one site.
    """
    table = manifest.table
    paths = {m: [str((manifest.root / cell).absolute()) if cell else "" for cell in table[m]] for m in INPUTS}
    names = table["subject"] + table["site"].radd("_").where(table["site"] != "", "")
    if names.duplicated().any():
        raise DataError(f"{manifest.root}: subject {names[names.duplicated()].iloc[0]} twice at one site; rename it.")
    return manifest.assign(**paths, name=names, site=site, seg="", split=split or table["split"])


def grid_notes(scan: Scan, contract: Contract) -> list[str]:
    """Say how a scan's grid differs from the contract's.

    Args:
        scan: of the target.
        contract: of the model.

    Returns:
        Sentences; none where the grids are alike.

    Raises:
        DataError: where resampling cannot mend the difference, and where the crop would cut the brain.
    """
    path = scan.path(contract.inputs[0])
    spacing, notes = np.linalg.norm(read_header(path).affine[:3, :3], axis=0), []
    if spacing.max() > COARSER * max(contract.spacing):
        raise DataError(
            f"{path}: voxels of {np.round(spacing, 2).tolist()} mm, the model's are {list(contract.spacing)} mm; a network "
            "cannot sharpen what it never saw: use volumes of that resolution, or train a model for theirs."
        )
    if not np.allclose(sorted(spacing), sorted(contract.spacing), atol=1e-3):
        notes.append(f"spacing {np.round(spacing, 2).tolist()} mm becomes the contract's {list(contract.spacing)} mm")
    case = read_case(scan, contract.inputs, labels=False)
    brain = torch.stack([v.as_tensor()[0] != 0 for v in case.values()]).all(0)
    if brain.float().mean() > 0.9:
        raise DataError(
            f"{path}: {100 * float(brain.float().mean()):.0f} % of the voxels are not zero; strip the skull and undo any "
            "z-score: the contract expects scanner units with a background of exact zeros."
        )
    if cut := cut_off(case, contract):
        notes.append(f"{path}: {cut}")
    return notes


def read_scanners(path: Path | str) -> dict[str, Site]:
    """Read two scanners, "source" and "target", from a YAML file.

    Each has `field` (1.5 or 3.0 T), `slice_mm` (of the T2) and the sequences t1, t2 and flair: `kind` (mprage, spin_echo,
    inversion_recovery) and its times in ms and flip angle in degrees, as in `medsynth_lib.data.simulation.physics`.

    Raises:
        DataError: naming what is missing.
    """
    try:
        plain = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return {name: read_scanner(name, plain[name]) for name in ("source", "target")}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{path}: not two scanners, source and target, each with field (1.5 or 3.0), slice_mm, t1, t2 and flair "
            f"({type(error).__name__}: {error}); see 'Use it on your own volumes' in README.md."
        ) from error


def read_scanner(name: str, values: dict) -> Site:
    """Make a scanner of its values in the file; an unknown field or sequence fails here."""
    t1, t2, flair = (Sequence(*split_kind(values[contrast])) for contrast in ("t1", "t2", "flair"))
    width = (1, 1, float(values["slice_mm"]))
    site = scanner_site(name, float(values["field"]), t1, t2, flair, width, width, (1, 1, 1), noise=0, bias=0)
    for sequence in (t1, t2, flair):
        protocol.levels(protocol.literature(), sequence, site.field)
    return site


def split_kind(sequence: dict) -> tuple[str, dict]:
    """Take a sequence's kind apart from its times."""
    return sequence["kind"], {name: value for name, value in sequence.items() if name != "kind"}
