"""Is a folder what a lesson needs? Names, modalities, sites, splits, headers and grids of a published set, without its voxels.

Your own folder ("own") is read as the lessons read it, voxels included.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm.auto import tqdm

from data_download import registry
from medsynth_lib.data.files.layouts import find
from medsynth_lib.data.files.manifest import MODALITIES, Manifest, Scan, check_leaks
from medsynth_lib.data.files.nifti import grid_gap, read_case, read_header, read_volume
from medsynth_lib.data.files.published import ROLES, Pairs
from medsynth_lib.data.files.selection import has, pair_inputs, paired, require_each_split, site_pair
from medsynth_lib.data.files.splits import with_split
from medsynth_lib.data.preparation.contract import Contract, prepare
from medsynth_lib.data.preparation.cubes import CubeContract, prepare_cube
from medsynth_lib.data.preparation.harmonise import MAKERS
from medsynth_lib.files import DataError
from medsynth_lib.processes import headless

COARSE = dict(spacing=(4.8,) * 3, size=(40, 40, 30))  # the paper's crop in large voxels: the same checks, but faster


@dataclass
class Report:
    """What `verify` found: subjects a site, scans lacking a modality, headers (how many files have each), and what is bad.

    ``expected`` is the number of subjects that the publisher counts, None where it is not known. ``roles`` is for your own
    data: role -> why it cannot be played (empty where it can).
    """

    name: str
    scans: int
    sites: dict
    expected: int | None = None
    missing: list = field(default_factory=list)
    headers: Counter = field(default_factory=Counter)
    bad: list = field(default_factory=list)
    roles: dict = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the lessons can use the folder."""
        if self.roles:
            return not all(self.roles.values())
        return not self.bad and len(self.missing) < self.scans

    def lines(self) -> Iterator[str]:
        """Yield the report as text, one finding a line."""
        yield f"{self.name}: {self.scans} scans; subjects a site: " + ", ".join(
            f"{s} {n}" for s, n in self.sites.items()
        )
        if self.expected:
            yield f"complete: {self.scans - len(self.missing)} of the {self.expected} subjects that its publisher counts"
        for text in self.missing[:10]:
            yield f"missing: {text}"
        if len(self.missing) > 10:
            yield f"missing: ... and {len(self.missing) - 10} more"
        for header, count in self.headers.most_common(8):
            yield f"{count} x {header}"
        if len(self.headers) > 8:
            yield f"... and {len(self.headers) - 8} more kinds of header"
        for text in self.bad[:10]:
            yield f"bad: {text}"
        if len(self.bad) > 10:
            yield f"bad: ... and {len(self.bad) - 10} more"
        for role, faults in self.roles.items():
            yield f"usable as {role}: no, because {faults[0]}" if faults else f"usable as {role}: yes"
            for text in faults[1:10]:
                yield f"  and {text}"
            if len(faults) > 10:
                yield f"  and {len(faults) - 10} more"
        if not self.roles:
            yield "usable" if self.usable else "not usable: mend what is listed above, then verify again"


def verify(name: str, folder: Path | str) -> Report:
    """Report on a data set in a folder.

    Args:
        name: of a published data set; "own" stands for a manifest.csv.
        folder: that holds it.

    Raises:
        DataError: where nothing is found.
    """
    expected = None if name == "own" else registry.entry(name).get("subjects")
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder that holds the unpacked data set.")
    manifest = find(name, folder)
    subjects = manifest.table.groupby("site")["subject"].nunique().to_dict()
    report = Report(name, len(manifest), subjects, expected)
    groups = needed(name)
    for scan in manifest.scans():
        lacking = [[m for m in group if not scan.has(m)] for group in groups]
        if all(lacking):
            report.missing.append(f"{scan['subject']} ({scan['site']}) lacks {', '.join(min(lacking, key=len))}")
    read_headers(report, manifest)
    if name == "own":
        require_own(manifest)
        report.bad = []  # the roles tell it again of scans that a lesson would read; the others do no harm
        report.roles = dict(pairs=pair_faults(manifest), volumes=volume_faults(manifest))
    return report


def read_headers(report: Report, manifest: Manifest) -> None:
    """Note the headers, and what is bad: leaks, unreadable headers, several grids in a row."""
    try:
        check_leaks(manifest)
    except DataError as error:
        report.bad.append(str(error))
    for scan in tqdm(manifest.scans(), desc="headers", disable=headless()):
        images = {}
        for path in [scan.path(m) for m in MODALITIES if scan.has(m)]:
            try:
                if path.is_dir():
                    report.headers[f"DICOM series of {len(list(path.glob('*.dcm')))} files"] += 1
                else:
                    images[path] = read_header(path)
                    report.headers[describe(images[path])] += 1
            except DataError as error:
                report.bad.append(str(error))
        if scan["dataset"] not in MAKERS:  # the others are brought to one grid before use
            report.bad += different_grids(images)


def require_own(manifest: Manifest) -> None:
    """Raise DataError for scans that are made ready first: verify them by the data set's name."""
    if made := sorted(MAKERS.keys() & set(manifest.table["dataset"])):
        raise DataError(
            f"{manifest.root}: holds {', '.join(made)}; verify it by that name: "
            f"python -m data_download verify {made[0]} {manifest.root}"
        )


def pair_faults(manifest: Manifest) -> list[str]:
    """Say why the lessons cannot use a folder as pairs.

    Sites and splits are checked, and each scan is read and prepared as the lessons do.
    """
    inputs = pair_inputs(manifest)
    if inputs is None:
        return ["no scan has FLAIR and T2, or T2 and PD, together with T1"]
    contract = Contract(inputs=inputs, **COARSE)
    manifest = manifest.where(has(manifest, contract.modalities))
    faults = []
    try:
        manifest = paired(manifest, site_pair(manifest), seed=0)
        require_each_split(manifest)
    except DataError as error:
        faults.append(str(error))
    return faults + scan_faults(manifest, lambda s: prepare(read_case(s, contract.modalities), contract), "pairs")


def volume_faults(manifest: Manifest) -> list[str]:
    """Say why the lessons cannot use a folder as single volumes.

    One of CT and T1 without a fault is enough.
    """
    found = [modality for modality in ("ct", "t1") if has(manifest, (modality,)).any()]
    faults = [faults_of_one(manifest.where(has(manifest, (modality,))), modality) for modality in found]
    return [] if [] in faults else sum(faults, []) or ["no scan has CT or T1"]


def faults_of_one(manifest: Manifest, modality: str) -> list[str]:
    """Say the same for the scans of one modality."""
    contract, faults = CubeContract(modality), []
    try:
        with_split(manifest, seed=0, pooled=True)
    except DataError as error:
        faults.append(str(error))
    return faults + scan_faults(manifest, lambda s: prepare_cube(read_volume(s.path(modality)), contract), modality)


def scan_faults(manifest: Manifest, read: Callable[[Scan], object], title: str) -> list[str]:
    """Collect the errors of reading each scan of a manifest."""
    faults = []
    for scan in tqdm(manifest.scans(), desc=title, disable=headless()):
        try:
            read(scan)
        except DataError as error:
            faults.append(str(error))
    return faults


def different_grids(images: dict[Path, nib.Nifti1Pair]) -> Iterator[str]:
    """Yield which of a scan's images lie on another grid than its first one."""
    items = list(images.items())
    for path, image in items[1:]:
        first, one = items[0]
        if gap := grid_gap((one.shape[:3], image.shape[:3]), (one.affine, image.affine)):
            yield f"{first} and {path}: {gap}"


def needed(name: str) -> list[tuple[str, ...]]:
    """List groups of modalities, of which a scan needs one group whole."""
    if name == "own":
        return [("t1", "flair", "t2"), ("t1", "t2", "pd"), ("t1",), ("ct",)]
    pairs, volumes = ROLES[name]["pairs"], ROLES[name]["volumes"]
    return [(*pairs.inputs, pairs.target)] if isinstance(pairs, Pairs) else [(volumes.modality,)]


def describe(image: nib.Nifti1Pair) -> str:
    """Describe shape, voxel size, orientation and type of an image, or of each volume in it."""
    size = " x ".join(f"{v:.3g}" for v in np.linalg.norm(image.affine[:3, :3], axis=0))
    shape = " x ".join(map(str, image.shape[:3]))
    return f"{shape}, {size} mm, {''.join(map(str, nib.aff2axcodes(image.affine)))}, {image.get_data_dtype()}"
