"""The data of a lesson: the simulated subjects, or the real ones that DATA_DIR names, by the same code from here on.

A lesson asks for one of two roles. "pairs": input contrasts and T1 of the same subject, at two sites (the slice-VAE paper).
"volumes": single volumes, chest CT or brain T1 (HA-GAN). `data.files.published` says which data set can play which.
"""

from typing import Any

import pandas as pd
import torch

from medsynth_lib.data.files.identity import require_distinct
from medsynth_lib.data.files.layouts import open_dataset
from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.files.published import ROLES_OF, refusal
from medsynth_lib.data.files.selection import complete, has, lesson_pairs, lesson_singles, pair_inputs
from medsynth_lib.data.preparation.contract import Contract
from medsynth_lib.data.preparation.harmonise import foreseen, ready_dataset
from medsynth_lib.data.preparation.pairs import PairedVolumes
from medsynth_lib.data.simulation.dataset import SEEDS, describe, describe_ct, simulated_dataset, simulated_thoraxes
from medsynth_lib.files import DataError
from medsynth_lib.processes import headless


def lesson_manifest(lesson: Any, required: bool = True) -> Manifest:
    """Return the scans of a source and a target site with a filled split.

    Without DATA_DIR they are simulated, `settings.counts` subjects a split at every one of `settings.sites`, and written
    once to the cache. With DATA_DIR they are those of `selection.lesson_pairs`.

    Args:
        lesson: a `course.Lesson`: settings, data_dir, seed, notebook.
        required: whether data that does not suit is an error; else the reason is printed and simulated subjects are used.

    Raises:
        DataError: for data that cannot be paired, or holds fewer subjects than the lesson needs.
    """
    s = lesson.settings
    manifest = real_scans(lesson, "pairs", None, required)
    if manifest is None:
        return simulated_dataset(s.counts, tuple(s.shape), s.spacing, tuple(s.sites), **workers())
    return manifest


def lesson_volumes(lesson: Any, modality: str, required: bool = True) -> Manifest:
    """Return single volumes with a filled split.

    Without DATA_DIR they are `simulated_volumes`, `settings.volume_counts` of each split.

    Args:
        lesson: a `course.Lesson`.
        modality: "ct" (chests) or "t1" (brains).
        required: as in `lesson_manifest`.

    Raises:
        DataError: for data without such volumes, or with fewer than the lesson needs.
    """
    manifest = real_scans(lesson, "volumes", modality, required)
    if manifest is None:
        return simulated_volumes(lesson.settings, modality, lesson.settings.volume_counts)
    return manifest


def require_data(lesson: Any) -> None:
    """Raise DataError where DATA_DIR has nothing that a lesson can use; it names the minimum.

    The first cell of a lesson asks it, before anything is computed. No voxel is read.
    """
    if lesson.data_dir is None or not ROLES_OF[lesson.notebook]:
        return
    manifest = open_dataset(lesson.data_dir)
    roles: list[tuple[str, str | None]] = [("pairs", None)] * ("pairs" in ROLES_OF[lesson.notebook])
    roles += [("volumes", modality) for modality in ("ct", "t1")] * ("volumes" in ROLES_OF[lesson.notebook])
    reasons = [unsuited(manifest, lesson, *role) for role in roles]
    if None not in reasons:
        raise refused(lesson, "; ".join(dict.fromkeys(filter(None, reasons))))


def simulated_volumes(settings: Any, modality: str, counts: dict[str, int]) -> Manifest:
    """Simulate single volumes: chests ("ct"), or tumour-free brains at site A ("t1").

    A chest has `settings.volume_size` voxels an axis.
    """
    if modality == "ct":
        return simulated_thoraxes(counts, (settings.volume_size,) * 3, **workers())
    return simulated_dataset(counts, tuple(settings.shape), settings.spacing, ("A",), tumour=False, **workers())


def workers() -> dict[str, Any]:
    """Return how lessons simulate and prepare: a process a thread, a bar if somebody watches."""
    return dict(jobs=torch.get_num_threads(), progress=not headless())


def simulated_subjects(settings: Any, modality: str, n: int) -> pd.DataFrame:
    """Return who the first training subjects of `simulated_volumes` are; nobody is simulated.

    Returns:
        The columns of their manifest that do not depend on the images: subject, site, and those of `describe`.
    """
    ct = modality == "ct"
    about = describe_ct((settings.volume_size,) * 3) if ct else describe(settings.shape, settings.spacing, False)
    names = [f"{'SIM' if ct else ''}{seed:05d}" for seed in SEEDS["train"][:n]]
    return pd.DataFrame(dict(subject=names, site="SIMCT" if ct else "SIMA")).assign(**about)


def real_scans(lesson: Any, role: str, modality: str | None, required: bool) -> Manifest | None:
    """Return the scans in DATA_DIR that a lesson takes in a role; None to simulate instead.

    They are skull-stripped, on one grid, and have a filled split.

    Args:
        lesson: a `course.Lesson`.
        role: "pairs" or "volumes".
        modality: of single volumes; None for pairs.
        required: whether data that does not suit is an error.

    Raises:
        DataError: with each data set's reason, where none can and one is required; and for two cells with one image.
    """
    if lesson.data_dir is None:
        return None
    manifest = open_dataset(lesson.data_dir)
    reason = unsuited(manifest, lesson, role, modality)
    if reason is None:
        chosen = suited(manifest, role, modality)
        require_distinct(
            taken(foreseen(chosen), lesson, role, modality), **workers()
        )  # no data takes the place of copies
        try:
            ready = ready_dataset(chosen, **workers())
            return taken(complete(ready, (modality,) if modality else read_in_pairs(ready)), lesson, role, modality)
        except DataError as error:  # what could not be made ready is left out: too few may remain
            reason = str(error)
    if required:
        raise refused(lesson, reason)
    print(f"{lesson.data_dir.name} is not used here ({reason}): simulated data takes its place")
    return None


def read_in_pairs(manifest: Manifest) -> tuple[str, ...]:
    """Return the modalities that a lesson reads of pairs."""
    return (*(pair_inputs(manifest) or ()), "t1")


def refused(lesson: Any, reason: str) -> DataError:
    """Make the error of data that a lesson cannot use."""
    return DataError(
        f"{lesson.data_dir}: cannot be used in lesson {lesson.notebook} ({reason}); unset DATA_DIR to run on simulated "
        "data, or see which data set suits which lesson: python -m data_download matrix."
    )


def suited(manifest: Manifest, role: str, modality: str | None) -> Manifest:
    """Return the scans of the data sets that can play a role."""
    names = manifest.table["dataset"].unique()
    return manifest.select(dataset=[n for n in names if why_not(manifest.select(dataset=n), n, role, modality) is None])


def unsuited(manifest: Manifest, lesson: Any, role: str, modality: str | None) -> str | None:
    """Say why a lesson cannot take scans in a role, each data set's reason; None where it can.

    Args:
        manifest: scans with a column `dataset`, as they were found.
        lesson: a `course.Lesson`: notebook, settings and seed.
        role: "pairs" or "volumes".
        modality: of single volumes; None for pairs.
    """
    names = manifest.table["dataset"].unique()
    reasons = {name: why_not(manifest.select(dataset=name), name, role, modality) for name in names}
    scans = foreseen(suited(manifest, role, modality))
    if len(scans):
        try:
            taken(scans, lesson, role, modality)
            return None
        except DataError as error:
            short = str(error).removeprefix(f"{manifest.root}: ").removesuffix(".")
            reasons |= dict.fromkeys(scans.table["dataset"], short)
    listed = [f"{name}: {why}" for name, why in sorted(reasons.items()) if why]
    return "; ".join(listed) or "no scan has all that is needed"


def taken(manifest: Manifest, lesson: Any, role: str, modality: str | None) -> Manifest:
    """Return what a lesson takes in a role, with a filled split; DataError for too little."""
    if role == "pairs":
        return lesson_pairs(manifest, lesson.notebook, lesson.settings.real_sites, lesson.seed)
    return lesson_singles(manifest, lesson.notebook, modality, lesson.seed)


def why_not(manifest: Manifest, name: str, role: str, modality: str | None) -> str | None:
    """Return why a data set cannot play a role; None where it can."""
    if reason := refusal(name, role):
        return reason
    if role == "pairs":
        return None if pair_inputs(manifest) else "no scan has FLAIR and T2, or T2 and PD, together with T1"
    return None if has(manifest, (modality,)).any() else f"has no {modality.upper()} volumes"


def kind_of(manifest: Manifest) -> str:
    """Return "simulated" or "real": what titles and notes must call this data."""
    # `python -m data_download lookalike` marks what it writes by a file
    marked = any((folder / "SIMULATED.txt").exists() for folder in (manifest.root, *manifest.root.glob("*/")))
    return "simulated" if marked or manifest.simulated else "real"


def lesson_contract(lesson: Any, manifest: Manifest) -> Contract:
    """Return the preprocessing contract of a lesson's settings, with the inputs of the data."""
    s, inputs = lesson.settings, pair_inputs(manifest)
    return Contract(inputs=inputs, spacing=(s.spacing,) * 3, size=tuple(s.size), normalisation=s.normalisation)


def volumes(manifest: Manifest, contract: Contract, site: str, split: str, limit: int | None = None) -> PairedVolumes:
    """Prepare the scans of one site and split, at most `limit` of them."""
    return PairedVolumes(manifest.select(site=site, split=split).head(limit), contract)
