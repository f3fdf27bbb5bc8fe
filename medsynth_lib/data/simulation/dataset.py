"""Write simulated patients as NIfTI in the layouts of real data sets, with a manifest: both take the same code path."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medsynth_lib.data.files.manifest import SHAPE, SIMULATED, Manifest
from medsynth_lib.data.files.nifti import write_volume
from medsynth_lib.data.simulation.atlas import VERSION as ATLAS_VERSION
from medsynth_lib.data.simulation.atlas import atlas
from medsynth_lib.data.simulation.scanner import CONTRASTS, SITES, Site, scan
from medsynth_lib.data.simulation.subject import Subject, make_subject
from medsynth_lib.data.simulation.thorax import make_thorax
from medsynth_lib.files import DataError, atomic, cache_folder, fingerprint
from medsynth_lib.processes import run

VERSION = 1  # raise when the simulator's images change: data sets and models made with another version are not reused
CT_VERSION = 2  # the same for chests and their truth
TABLE_VERSION = 2  # raise when the manifest's columns change: data sets in the cache are then written anew
# Disjoint by construction: a split is a range of seeds, and a seed is a subject.
SEEDS = {
    "train": range(0, 10_000),
    "adapt": range(10_000, 20_000),
    "tune": range(20_000, 30_000),
    "test": range(30_000, 40_000),
}
STORED_RANGE = 30_000  # largest stored number: int16 ends at 32,767
TRUTH = ("brain_ml", "ventricle_ml", "oedema_ml", "enhancing_ml", "necrotic_ml")

Counts = dict[str, int]
Row = dict[str, Any]


def simulated_dataset(
    counts: Counts,
    shape: Sequence[int],
    spacing: float,
    sites: Sequence[str] = ("A", "B"),
    tumour: bool = True,
    jobs: int = 1,
    folder: Path | str | None = None,
    progress: bool = False,
) -> Manifest:
    """Simulate brains at several sites, write them once, and find them again.

    Every subject is scanned at every site.

    An interrupted run goes on where it stopped.

    Args:
        counts: subjects a split, such as `dict(train=24, tune=6, test=12)`; splits as in `SEEDS`.
        shape: voxels (x, y, z); BraTS has (240, 240, 155).
        spacing: edge of a voxel in mm; BraTS has 1.0.
        sites: names from `SITES`; site A's folders are called BraTS19_SIMA_<seed>_1.
        tumour: with a glioma, or tumour-free (then the seg file is all zero).
        jobs: worker processes.
        folder: where to write; None chooses a folder in the cache by the arguments.
        progress: show a progress bar.

    Raises:
        KeyError: for an unknown split or site.
        DataError: for a folder that holds another data set.
    """
    seeds, about = drawn_seeds(counts), describe(shape, spacing, tumour)
    folder = Path(folder or simulated_folder(about, counts, sites))

    def write() -> list[Row]:
        atlas(float(spacing))  # once here, not once in every worker
        tasks = [(folder, split, seed, tuple(shape), spacing, tuple(sites), tumour) for split, seed in seeds]
        return sum(run(write_subject, tasks, jobs, folder, progress), [])

    return written_once(folder, write, about, {(f"{seed:05d}", f"SIM{site}") for _, seed in seeds for site in sites})


def simulated_thoraxes(
    counts: Counts, shape: Sequence[int], jobs: int = 1, folder: Path | str | None = None, progress: bool = False
) -> Manifest:
    """Simulate chest CTs in HU with their truth, write them once, and find them again.

    One folder a subject and one file a scan, named in the manner of COPDGene (SIM00012/SIM00012_INSP_STD_SIM_COPD.nii.gz).

    Args:
        counts: subjects a split; splits as in `SEEDS`.
        shape: voxels (x, y, z); the voxel size follows from it (`thorax.FIELD_OF_VIEW`).
        jobs: worker processes.
        folder: where to write; None chooses a folder in the cache by the arguments.
        progress: show a progress bar.

    Raises:
        KeyError: for an unknown split.
        DataError: for a folder that holds another data set.
    """
    seeds, about = drawn_seeds(counts), describe_ct(shape)
    folder = Path(folder or simulated_folder(about, counts))

    def write() -> list[Row]:
        return run(write_thorax, [(folder, split, seed, tuple(shape)) for split, seed in seeds], jobs, folder, progress)

    return written_once(folder, write, about, {(f"SIM{seed:05d}", "SIMCT") for _, seed in seeds})


def drawn_seeds(counts: Counts) -> list[tuple[str, int]]:
    """List (split, seed) of every subject."""
    return [(split, SEEDS[split][i]) for split, n in counts.items() for i in range(n)]


def simulated_folder(about: Row, counts: Counts, sites: Sequence[str] = ()) -> Path:
    """Return the folder of a simulated data set in the cache, named by all that it depends on."""
    return cache_folder("simulated", fingerprint(TABLE_VERSION, about, counts, sites))


def written_once(folder: Path, write: Callable[[], list[Row]], about: Row, scans: set[tuple[str, str]]) -> Manifest:
    """Return the manifest in a folder, made from the rows of `write()` where there is none.

    Args:
        folder: of manifest.csv.
        write: writes the images; returns their rows.
        about: the columns that all scans share, of `describe` or `describe_ct`.
        scans: the (subject, site) of all that must be there.

    Raises:
        DataError: where the folder holds another data set.
    """
    path = folder / "manifest.csv"
    if not path.exists():  # written last: it marks the data set as complete
        Manifest(pd.DataFrame(write()), folder).write(path)
    manifest = Manifest.read(path)
    found = {(scan["subject"], scan["site"]) for scan in manifest.scans()}
    others = [scan for scan in manifest.scans() if any(scan.get(name) != value for name, value in about.items())]
    if found != scans or others:
        asked = ", ".join(f"{name} {about[name]}" for name in SIMULATED if name in about)
        raise DataError(f"{folder}: holds other simulated subjects than asked for ({asked}); choose another folder.")
    return manifest


def describe(shape: Sequence[int], spacing: float, tumour: bool) -> Row:
    """Return the columns that tell what simulated brains depend on besides subject and site.

    Args:
        shape: voxels (x, y, z).
        spacing: edge of a voxel in mm.
        tumour: with a glioma, or tumour-free.
    """
    about = dict(simulated=True, simulator=f"brain {VERSION}.{ATLAS_VERSION}", **voxels(shape))
    return about | dict(spacing_mm=float(spacing), tumour=bool(tumour))


def describe_ct(shape: Sequence[int]) -> Row:
    """Return the same columns of simulated chests; their voxel size follows from the shape."""
    return dict(simulated=True, simulator=f"chest {CT_VERSION}", **voxels(shape))


def voxels(shape: Sequence[int]) -> Row:
    """Return a shape as the columns nx, ny, nz."""
    return {name: int(n) for name, n in zip(SHAPE, shape, strict=True)}


def write_subject(
    folder: Path, split: str, seed: int, shape: Sequence[int], spacing: float, sites: Sequence[str], tumour: bool
) -> list[Row]:
    """Write one subject's case folders, one a site, unless they are there; return their rows."""
    rows, subject = [], None
    for name in sites:
        case = f"BraTS19_SIM{name}_{seed:05d}_1"
        target = folder / "HGG" / case
        if not (target / "truth.json").exists():
            subject = subject or make_subject(seed, shape, spacing, tumour)
            with atomic(target) as temporary:
                write_case(temporary, case, subject, SITES[name])
        truth = json.loads((target / "truth.json").read_text())
        paths = {m: f"HGG/{case}/{case}_{m}.nii.gz" for m in (*CONTRASTS, "seg")}
        identity = dict(subject=f"{seed:05d}", site=f"SIM{name}", split=split)
        rows.append(identity | describe(shape, spacing, tumour) | paths | truth)
    return rows


def write_case(folder: Path, case: str, subject: Subject, site: Site) -> None:
    """Write contrasts and labels of one subject at one site (int16, uint8), and its truth."""
    for contrast in CONTRASTS:
        image = scan(subject, site, contrast)
        image *= min(1.0, STORED_RANGE / image.max())
        stored = np.maximum(np.rint(image), subject.brain)  # at least 1 in the brain: 0 means outside
        write_volume(folder / f"{case}_{contrast}.nii.gz", stored, subject.affine, "int16")
    write_volume(folder / f"{case}_seg.nii.gz", subject.seg, subject.affine, "uint8")
    (folder / "truth.json").write_text(json.dumps({k: round(float(subject.truth[k]), 3) for k in TRUTH}))


def write_thorax(folder: Path, split: str, seed: int, shape: Sequence[int]) -> Row:
    """Write one chest CT (int16 HU) and its truth unless they are there; return its row."""
    subject = f"SIM{seed:05d}"
    name = f"{subject}_INSP_STD_SIM_COPD.nii.gz"
    target = folder / subject
    if not (target / "truth.json").exists():
        thorax = make_thorax(seed, shape)
        with atomic(target) as temporary:
            write_volume(temporary / name, thorax.hu, thorax.affine, "int16")
            truth = {k: round(v, 3) for k, v in thorax.truth.items() if k != "seed"}
            (temporary / "truth.json").write_text(json.dumps(truth))
    truth = json.loads((target / "truth.json").read_text())
    identity = dict(subject=subject, site="SIMCT", split=split)
    return identity | describe_ct(shape) | {"ct": f"{subject}/{name}"} | truth
