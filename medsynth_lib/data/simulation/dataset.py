"""Write simulated patients as NIfTI in the layouts of real data sets, with a manifest: both take the same code path."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from medsynth_lib.data.files.manifest import read_manifest, write_manifest
from medsynth_lib.data.files.nifti import write_volume
from medsynth_lib.data.simulation.atlas import VERSION as ATLAS_VERSION
from medsynth_lib.data.simulation.atlas import atlas
from medsynth_lib.data.simulation.scanner import CONTRASTS, SITES, scan
from medsynth_lib.data.simulation.subject import make_subject
from medsynth_lib.data.simulation.thorax import make_thorax
from medsynth_lib.files import DataError, atomic, cache_folder
from medsynth_lib.processes import run

VERSION = 1  # raise when the simulator's images change: data sets and models made with another version are not reused
CT_VERSION = 2  # the same for chests and their truth
# Disjoint by construction: a split is a range of seeds, and a seed is a person.
SEEDS = {
    "train": range(0, 10_000),
    "adapt": range(10_000, 20_000),
    "tune": range(20_000, 30_000),
    "test": range(30_000, 40_000),
}
STORED_RANGE = 30_000  # largest stored number: int16 ends at 32,767
TRUTH = ("brain_ml", "ventricle_ml", "oedema_ml", "enhancing_ml", "necrotic_ml")


def simulated_dataset(counts, shape, spacing, sites=("A", "B"), tumour=True, jobs=1, folder=None, progress=False):
    """Manifest (DataFrame) of simulated subjects, written once and found again: every subject scanned at every site.

    Args:
        counts: subjects per split, e.g. ``dict(train=24, tune=6, test=12)``; splits as in SEEDS.
        shape, spacing: grid in voxels and mm; BraTS itself is (240, 240, 155) at 1.0.
        sites: names from SITES; site A's folders are called BraTS19_SIMA_<seed>_1.
        tumour: with a glioma or tumour-free (then the seg file is all zero).
        jobs: worker processes. folder: where to write; None chooses one in the cache by the arguments.

    An interrupted run goes on where it stopped. Raises KeyError for an unknown split or site, and DataError for a folder that
    holds another data set.
    """
    seeds = drawn_seeds(counts)
    source = describe(shape, spacing, tumour)
    if folder is None:
        recipe = json.dumps([source, sorted(counts.items()), list(sites)])
        folder = cache_folder("simulated", hashlib.sha256(recipe.encode()).hexdigest()[:12])
    folder = Path(folder)

    def write():
        atlas(float(spacing))  # once here, not once in every worker
        tasks = [(folder, split, seed, tuple(shape), spacing, tuple(sites), tumour) for split, seed in seeds]
        return sum(run(write_subject, tasks, jobs, folder, progress), [])

    return written_once(folder, write, {(f"{seed:05d}", f"SIM{site}", source) for _, seed in seeds for site in sites})


def simulated_thoraxes(counts, shape, jobs=1, folder=None, progress=False):
    """Manifest (DataFrame) of simulated chest CTs in HU with their truth and lung function, written once and found again.

    One folder a subject and one file a scan, named in the manner of COPDGene (SIM00012/SIM00012_INSP_STD_SIM_COPD.nii.gz).
    Arguments and errors as for `simulated_dataset`; the voxel size follows from ``shape`` (`thorax.FIELD_OF_VIEW`).
    """
    seeds = drawn_seeds(counts)
    source = describe_ct(shape)
    if folder is None:
        recipe = json.dumps([source, sorted(counts.items())])
        folder = cache_folder("simulated", hashlib.sha256(recipe.encode()).hexdigest()[:12])
    folder = Path(folder)

    def write():
        tasks = [(folder, split, seed, tuple(shape), source) for split, seed in seeds]
        return run(write_thorax, tasks, jobs, folder, progress)

    return written_once(folder, write, {(f"SIM{seed:05d}", "SIMCT", source) for _, seed in seeds})


def drawn_seeds(counts):
    """(split, seed) of every subject."""
    return [(split, SEEDS[split][i]) for split, n in counts.items() for i in range(n)]


def written_once(folder, write, wanted):
    """The manifest in ``folder``, made from the rows of ``write()`` where there is none; it must hold the scans ``wanted``."""
    path = folder / "manifest.csv"
    if not path.exists():  # written last: it marks the data set as complete
        write_manifest(pd.DataFrame(write()), path)
    frame = read_manifest(path)
    if wanted != set(zip(frame["subject"], frame["site"], frame["source"], strict=True)):
        asked = ", ".join(sorted({source for *_, source in wanted}))
        raise DataError(f"{folder}: holds other simulated subjects than asked for ({asked}); choose another folder.")
    return frame


def describe(shape, spacing, tumour):
    """What simulated images depend on besides subject and site; the manifest's ``source``."""
    kind = "with glioma" if tumour else "tumour-free"
    return f"simulated v{VERSION}.{ATLAS_VERSION}, {'x'.join(map(str, shape))} at {spacing:g} mm, {kind}"


def describe_ct(shape):
    """The same of simulated chests."""
    return f"simulated CT v{CT_VERSION}, {'x'.join(map(str, shape))}"


def write_subject(folder, split, seed, shape, spacing, sites, tumour):
    """Write one subject's case folders, one a site, unless they are there; return their manifest rows."""
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
        rows.append(
            dict(
                subject=f"{seed:05d}",
                site=f"SIM{name}",
                split=split,
                source=describe(shape, spacing, tumour),
                **paths,
                **truth,
            )
        )
    return rows


def write_case(folder, case, subject, site):
    """Write the four contrasts and the labels of one subject at one site as int16 / uint8 NIfTI, and its truth."""
    for contrast in CONTRASTS:
        image = scan(subject, site, contrast)
        image *= min(1.0, STORED_RANGE / image.max())
        stored = np.maximum(np.rint(image), subject.brain)  # at least 1 in the brain: 0 means outside
        write_volume(folder / f"{case}_{contrast}.nii.gz", stored, subject.affine, "int16")
    write_volume(folder / f"{case}_seg.nii.gz", subject.seg, subject.affine, "uint8")
    (folder / "truth.json").write_text(json.dumps({k: round(float(subject.truth[k]), 3) for k in TRUTH}))


def write_thorax(folder, split, seed, shape, source):
    """Write one chest CT (int16 HU) and its truth unless they are there; return its manifest row."""
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
    return dict(subject=subject, site="SIMCT", split=split, source=source, ct=f"{subject}/{name}", **truth)
