"""The data of a lesson: the simulated subjects, or the real ones that DATA_DIR names, by the same code from here on.

A lesson asks for one of two roles. "pairs": input contrasts and T1 of the same subject, at two sites (the slice-VAE paper).
"volumes": single volumes, chest CT or brain T1 (HA-GAN). `data.files.published` says which data set can play which.
"""

from typing import Any

import pandas as pd
import torch

from medsynth_lib.data.files.layouts import open_dataset
from medsynth_lib.data.files.manifest import Manifest
from medsynth_lib.data.files.published import refusal
from medsynth_lib.data.files.selection import complete, has, only_site, pair_inputs, paired, site_pair
from medsynth_lib.data.files.splits import with_split
from medsynth_lib.data.preparation.contract import Contract
from medsynth_lib.data.preparation.harmonise import ready_dataset
from medsynth_lib.data.preparation.pairs import PairedVolumes
from medsynth_lib.data.simulation.dataset import SEEDS, describe, describe_ct, simulated_dataset, simulated_thoraxes
from medsynth_lib.files import DataError
from medsynth_lib.processes import headless


def lesson_manifest(lesson: Any, required: bool = True) -> Manifest:
    """Return the scans of a source and a target site with a filled split.

    Without DATA_DIR they are simulated, `settings.counts` subjects a split at every one of `settings.sites`, and written
    once to the cache. With DATA_DIR they are its scans that have both inputs and T1, at the sites of `site_pair`. Where no
    split is saved, `split_sites` draws train, tune and test at both sites.

    Args:
        lesson: a `course.Lesson`: settings, data_dir, seed, notebook.
        required: whether data that cannot be paired is an error; else the reason is printed and simulated subjects are used.

    Raises:
        DataError: for data that cannot be paired.
    """
    s = lesson.settings
    manifest = real_scans(lesson, "pairs", required)
    if manifest is None:
        return simulated_dataset(s.counts, tuple(s.shape), s.spacing, tuple(s.sites), **workers())
    manifest = complete(manifest, (*pair_inputs(manifest), "t1"))
    return paired(manifest, s.real_sites or site_pair(manifest), lesson.seed)


def lesson_volumes(lesson: Any, modality: str, required: bool = True) -> Manifest:
    """Return single volumes with a filled split.

    Without DATA_DIR they are `simulated_volumes`, `settings.volume_counts` of each split.

    Args:
        lesson: a `course.Lesson`.
        modality: "ct" (chests) or "t1" (brains).
        required: as in `lesson_manifest`.

    Raises:
        DataError: for data without such volumes.
    """
    manifest = real_scans(lesson, "volumes", required, modality)
    if manifest is not None:
        return with_split(complete(manifest, (modality,)), lesson.seed, pooled=True)
    return simulated_volumes(lesson.settings, modality, lesson.settings.volume_counts)


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


def real_scans(lesson: Any, role: str, required: bool, modality: str | None = None) -> Manifest | None:
    """Return the scans in DATA_DIR that can play a role; None to simulate instead.

    They are skull-stripped and on one grid.

    Args:
        lesson: a `course.Lesson`.
        role: "pairs" or "volumes".
        required: whether data that does not suit is an error.
        modality: of single volumes.

    Raises:
        DataError: with each data set's reason, where none can and one is required.
    """
    if lesson.data_dir is None:
        return None
    manifest = open_dataset(lesson.data_dir)
    names = set(manifest.table["dataset"])
    reasons = {name: why_not(manifest.select(dataset=name), name, role, modality) for name in names}
    usable = manifest.select(dataset=[name for name in names if reasons[name] is None])
    if role == "pairs" and len(usable) and (lone := only_site(usable)):
        reasons |= dict.fromkeys(set(usable.table["dataset"]), f"only site {lone}; a domain shift needs two sites")
    elif len(usable):
        return ready_dataset(usable, **workers())
    reason = "; ".join(f"{name}: {why}" for name, why in sorted(reasons.items()))
    if required:
        raise DataError(
            f"{lesson.data_dir}: cannot be used in lesson {lesson.notebook} ({reason}); unset DATA_DIR to run on simulated "
            "data, or see which data set suits which lesson: python -m data_download matrix."
        )
    print(f"{lesson.data_dir.name} is not used here ({reason}): simulated data takes its place")
    return None


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
