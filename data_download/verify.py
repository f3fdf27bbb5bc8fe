"""Is a folder what the lessons need? Every file is read whole; then each lesson says what it takes."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
from monai.data import MetaTensor

from data_download import registry
from medsynth_lib.data.files.identity import content_of, require_distinct
from medsynth_lib.data.files.layouts import find
from medsynth_lib.data.files.manifest import MODALITIES, Manifest, Scan, check_leaks
from medsynth_lib.data.files.nifti import grid_gap, read_header, read_volume
from medsynth_lib.data.files.paths import split_volume
from medsynth_lib.data.files.published import ROLES, ROLES_OF, Pairs
from medsynth_lib.data.files.selection import has, pair_inputs
from medsynth_lib.data.preparation.contract import Contract, cut_off, prepare
from medsynth_lib.data.preparation.cubes import CubeContract, prepare_cube
from medsynth_lib.data.preparation.harmonise import MAKERS, NEEDED, foreseen
from medsynth_lib.data.preparation.plausibility import require_plausible, warnings_of
from medsynth_lib.experiments.lesson_data import taken, unsuited
from medsynth_lib.files import DataError
from medsynth_lib.processes import run

COARSE = dict(spacing=(4.8,) * 3, size=(40, 40, 30))  # the paper's crop in large voxels: the same checks, but faster
SHOWN = 10  # lines of a kind
LESSONS = ("01", "02", "03", "05", "06", "07")  # those that read DATA_DIR


@dataclass
class Reading:
    """What reading one scan found: a header a file, and faults by what they spoil.

    Keys of ``faults`` are "pairs", "ct" and "t1"; of what no lesson needs, the modality, such as "t1ce".
    """

    scan: Scan
    headers: list[str] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def blame(self, error: DataError | str, *spoilt: str) -> None:
        """Note a fault of everything that it spoils."""
        for key in spoilt:
            self.faults.setdefault(key, []).append(str(error))


@dataclass
class Report:
    """What `verify` found: subjects a site, scans lacking a modality, headers (how many files have each), and what is bad.

    ``expected`` is the number of subjects that the publisher counts, None where it is not known. ``lessons`` is for each
    lesson either what it takes, or why it cannot be run.
    """

    name: str
    scans: int
    sites: dict
    expected: int | None = None
    missing: list = field(default_factory=list)
    headers: Counter = field(default_factory=Counter)
    bad: list = field(default_factory=list)
    warnings: list = field(default_factory=list)
    roles: dict = field(
        default_factory=dict
    )  # "pairs" and "volumes" -> why no lesson can use them so; [] where one can
    lessons: dict = field(default_factory=dict)  # lesson -> (whether it runs, what it takes or why not)

    @property
    def usable(self) -> bool:
        """Whether at least one lesson can use the folder."""
        return any(runs for runs, _ in self.lessons.values())

    def lines(self) -> Iterator[str]:
        """Yield the report as text, one finding a line."""
        yield f"{self.name}: {self.scans} scans; subjects a site: " + ", ".join(
            f"{s} {n}" for s, n in self.sites.items()
        )
        if self.expected:
            yield f"complete: {self.scans - len(self.missing)} of the {self.expected} subjects that its publisher counts"
        yield from shortened("missing", self.missing)
        for header, count in self.headers.most_common(8):
            yield f"{count} x {header}"
        if len(self.headers) > 8:
            yield f"... and {len(self.headers) - 8} more kinds of header"
        yield from shortened("bad", self.bad)
        yield from shortened("look at", self.warnings)
        for role, faults in self.roles.items():
            yield f"usable as {role}: no, because {faults[0]}" if faults else f"usable as {role}: yes"
            yield from (f"  and {text}" for text in faults[1:SHOWN])
            if len(faults) > SHOWN:
                yield f"  and {len(faults) - SHOWN} more"
        for lesson, (runs, text) in self.lessons.items():
            yield f"lesson {lesson}: {'usable' if runs else 'not usable'}, {text}"
        yield "lesson 04: simulates its subjects; its command adapts to your volumes. Lesson 08 reads no data."


def shortened(title: str, texts: list[str]) -> Iterator[str]:
    """Yield the first texts, one a line, and how many more there are."""
    yield from (f"{title}: {text}" for text in texts[:SHOWN])
    if len(texts) > SHOWN:
        yield f"{title}: ... and {len(texts) - SHOWN} more"


def verify(name: str, folder: Path | str, jobs: int | None = None) -> Report:
    """Report on a data set in a folder: read every file whole, then say what each lesson can do with it.

    Args:
        name: of a published data set; "own" stands for a manifest.csv.
        folder: that holds it.
        jobs: processes that read; None takes one a core.

    Raises:
        DataError: where nothing is found.
    """
    expected = None if name == "own" else registry.entry(name).get("subjects")
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}; give the folder that holds the unpacked data set.")
    manifest = find(name, folder)
    if name == "own":
        require_own(manifest)
    subjects = manifest.table.groupby("site")["subject"].nunique().to_dict()
    report = Report(name, len(manifest), subjects, expected, missing=list(lacking(name, manifest)))
    jobs = jobs or os.cpu_count() or 1
    readings = read_all(manifest, jobs)
    for reading in readings:
        report.headers.update(reading.headers)
        report.warnings += reading.warnings
    report.bad = list(dict.fromkeys(text for r in readings for texts in r.faults.values() for text in texts))
    judge(report, manifest, readings, jobs)
    return report


def lacking(name: str, manifest: Manifest) -> Iterator[str]:
    """Yield what the scans lack, of which no group of `needed` is whole."""
    for scan in manifest.scans():
        gaps = [[m for m in group if not scan.has(m)] for group in needed(name)]
        if all(gaps):
            yield f"{scan['subject']} ({scan['site']}) lacks {', '.join(min(gaps, key=len))}"


def require_own(manifest: Manifest) -> None:
    """Raise DataError for scans that are made ready first: verify them by the data set's name."""
    if made := sorted(MAKERS.keys() & set(manifest.table["dataset"])):
        raise DataError(
            f"{manifest.root}: holds {', '.join(made)}; verify it by that name: "
            f"python -m data_download verify {made[0]} {manifest.root}"
        )


# -- reading ---------------------------------------------------------------------------------------------------------------


def read_all(manifest: Manifest, jobs: int) -> list[Reading]:
    """Read every scan, in several processes; the first one tells how long it will take."""
    inputs, scans = pair_inputs(manifest), manifest.scans()
    quiet = os.environ.get("MEDSYNTH_HEADLESS") == "1"
    start = time.monotonic()
    first = read_scan(scans[0], inputs)
    per_byte = (time.monotonic() - start) / max(1, size_of(scans[0]))
    rest = sum(map(size_of, scans[1:]))
    if not quiet and len(scans) > 1:
        minutes = per_byte * rest / min(jobs, len(scans) - 1) / 60
        print(
            f"reading {len(scans)} scans, {rest / 1e9:.2f} GB, in {jobs} process(es): about {minutes:.1f} min",
            flush=True,
        )
    tasks = [(scan, inputs) for scan in scans[1:]]
    return [first, *run(read_scan, tasks, jobs, manifest.root, not quiet, "reading", "scan")]


def size_of(scan: Scan) -> int:
    """Sum the bytes of a scan's files."""
    files = {split_volume(scan.path(m))[0] for m in MODALITIES if scan.has(m)}
    listed = [f for path in files for f in (path.iterdir() if path.is_dir() else [path])]
    return sum(f.stat().st_size for f in listed if f.is_file())


def read_scan(scan: Scan, inputs: tuple[str, str] | None) -> Reading:
    """Read all files of a scan and prepare it as the lessons do, coarsely.

    Args:
        scan: a row of a manifest.
        inputs: the input contrasts of pairs; None for a folder without pairs.
    """
    reading, volumes = Reading(scan), {}
    paired = (*inputs, "t1") if inputs and all(scan.has(m) for m in (*inputs, "t1")) else ()
    for modality in [m for m in MODALITIES if scan.has(m)]:
        try:
            volumes[modality] = read_image(scan, modality, reading)
        except DataError as error:
            reading.blame(error, *spoilt_by(modality, paired))
    if scan["dataset"] not in MAKERS:  # those are made ready before use, which takes longer than this
        prepare_all(reading, volumes, paired)
    look_at(reading, volumes, paired)
    return reading


def spoilt_by(modality: str, paired: tuple[str, ...]) -> tuple[str, ...]:
    """Say what a bad image spoils: itself, and the pair that it belongs to."""
    return (modality, "pairs") if paired and modality in (*paired, "seg") else (modality,)


def prepare_all(reading: Reading, volumes: dict[str, MetaTensor], paired: tuple[str, ...]) -> None:
    """Prepare the images of a scan as pairs and as single volumes; note what fails."""
    reading.faults |= {"grid": list(different_grids(volumes))} if len(volumes) > 1 else {}
    if paired and "pairs" not in reading.faults:
        attempt(reading, ("pairs",), prepare_pair, {m: volumes[m] for m in (*paired, "seg") if m in volumes}, reading)
    for modality in volumes.keys() & {"ct", "t1"}:
        attempt(reading, (modality,), prepare_cube, volumes[modality], CubeContract(modality))


def look_at(reading: Reading, volumes: dict[str, MetaTensor], paired: tuple[str, ...]) -> None:
    """Note what makes it doubtful that images are what they are called.

    A head with its skull is judged when it has been made ready.
    """
    for modality, volume in volumes.items():
        if modality != "ct" and reading.scan["dataset"] in MAKERS:
            continue
        reading.warnings += [f"{volume.meta['filename_or_obj']}: {text}" for text in warnings_of(volume, modality)]
        attempt(reading, spoilt_by(modality, paired), require_plausible, volume, modality)


def attempt(reading: Reading, spoilt: tuple[str, ...], function: Callable, *arguments: object) -> None:
    """Call a function; note its DataError as a fault of all that it spoils."""
    try:
        function(*arguments)
    except DataError as error:
        reading.blame(error, *spoilt)


def prepare_pair(case: dict[str, MetaTensor], reading: Reading) -> None:
    """Prepare a pair coarsely, raise the errors of the lessons, and note what the crop cuts off."""
    inputs = tuple(m for m in case if m not in ("t1", "seg"))
    first = case[inputs[0]]
    for path, gap in differences(first, case.values()):
        raise DataError(f"{first.meta['filename_or_obj']} and {path}: {gap}")
    contract = Contract(inputs=inputs, **COARSE)
    prepare(case, contract)
    if cut := cut_off(case, contract):
        reading.warnings.append(f"{first.meta['filename_or_obj']}: {cut}")


def read_image(scan: Scan, modality: str, reading: Reading) -> MetaTensor:
    """Read one image of a scan, note its header, and remember its content for `require_distinct`."""
    path = scan.path(modality)
    if path.is_dir():
        array, affine = MAKERS["lidc"](scan, 0)["ct"]
        reading.headers.append(f"DICOM series of {array.shape[2]} slices")
        volume = MetaTensor(np.asarray(array, np.float32)[None], affine=affine, meta={"filename_or_obj": str(path)})
    else:
        reading.headers.append(describe(read_header(path)))
        volume = read_volume(path, labels=labels_of(scan, modality))
    content_of(path)
    return volume


def labels_of(scan: Scan, modality: str) -> bool | tuple[int, ...]:
    """Say which labels a file may hold: MSD Task01 has labels of its own."""
    if modality != "seg":
        return False
    return (0, 1, 2, 3) if scan["dataset"] == "msd_task01" else True


def different_grids(volumes: dict[str, MetaTensor]) -> Iterator[str]:
    """Yield which of a scan's images lie on another grid than its first one; CT is never paired."""
    listed = [volume for modality, volume in volumes.items() if modality != "ct"]
    for path, gap in differences(listed[0], listed[1:]) if listed else ():
        yield f"{listed[0].meta['filename_or_obj']} and {path}: {gap}"


def differences(first: MetaTensor, others: object) -> Iterator[tuple[str, str]]:
    """Yield file and difference of the images that are not on a first image's grid."""
    for other in others:
        shapes, affines = zip(*((tuple(v.shape[1:]), v.affine.numpy()) for v in (first, other)), strict=True)
        if gap := grid_gap(shapes, affines):
            yield other.meta["filename_or_obj"], gap


def describe(image: nib.Nifti1Pair) -> str:
    """Describe shape, voxel size, orientation and type of an image, or of each volume in it."""
    size = " x ".join(f"{v:.3g}" for v in np.linalg.norm(image.affine[:3, :3], axis=0))
    shape = " x ".join(map(str, image.shape[:3]))
    return f"{shape}, {size} mm, {''.join(map(str, nib.aff2axcodes(image.affine)))}, {image.get_data_dtype()}"


# -- what the lessons can do with it -----------------------------------------------------------------------------------------


def judge(report: Report, manifest: Manifest, readings: list[Reading], jobs: int) -> None:
    """Say for each role why it cannot be played, and for each lesson what it takes or why it cannot be run."""
    common = []  # faults of the manifest as a whole
    for check in (check_leaks, lambda m: require_distinct(m, jobs=jobs)):
        try:
            check(manifest)
        except DataError as error:
            common.append(str(error))
    report.bad += common
    reasons = {lesson: why_not(manifest, readings, lesson) for lesson in LESSONS}
    for role, lesson in (("pairs", "02"), ("volumes", "01")):  # the lessons that need least
        parts = [common + why for key, why in reasons[lesson].items() if (key == "pairs") == (role == "pairs")]
        report.roles[role] = [] if [] in parts else list(dict.fromkeys(sum(parts, [])))
    for lesson, parts in reasons.items():
        runs = {key for key, why in parts.items() if not why and not common}
        why = common or list(dict.fromkeys(sum(parts.values(), [])))
        report.lessons[lesson] = bool(runs), takes(manifest, lesson, runs) if runs else shortest(why)


def shortest(faults: list[str]) -> str:
    """Join the first two faults, and say how many more there are."""
    more = f"; and {len(faults) - 2} more" if len(faults) > 2 else ""
    return "; ".join(text if len(text) < 300 else f"{text[:300]} ..." for text in faults[:2]) + more


def why_not(manifest: Manifest, readings: list[Reading], lesson: str) -> dict[str, list[str]]:
    """Say why a lesson cannot use a folder, by what it would read: "pairs", "ct", "t1".

    Scans that are made ready first are left out by the lessons where they cannot be read. A fault of any other scan that a
    lesson takes ends the lesson.
    """
    reasons, kept = {}, readable(manifest, readings)
    for key in keys_of(manifest, lesson):
        reason = unsuited(kept, stand_in(lesson), *role_of(key))
        reasons[key] = [f"{manifest.root}: {reason}"] if reason else []
        reasons[key] += faults_in(kept, readings, lesson, key, bool(reason))
    if not keys_of(manifest, "05"):
        reasons["volumes"] = [f"{manifest.root}: no scan has CT or T1"]
    return {key: reasons[key] for key in reasons if key == "pairs" or "volumes" in ROLES_OF[lesson]}


def keys_of(manifest: Manifest, lesson: str) -> list[str]:
    """List what a lesson would read: "pairs", and which of "ct" and "t1" is there."""
    singles = [modality for modality in ("ct", "t1") if has(manifest, (modality,)).any()]
    return ["pairs"] * ("pairs" in ROLES_OF[lesson]) + singles * ("volumes" in ROLES_OF[lesson])


def role_of(key: str) -> tuple[str, str | None]:
    """Return role and modality, as `lesson_data` wants them."""
    return ("pairs", None) if key == "pairs" else ("volumes", key)


def readable(manifest: Manifest, readings: list[Reading]) -> Manifest:
    """Leave out what the lessons leave out: scans that cannot be read, of the data sets that are made ready first."""
    spoilt = [r.scan["dataset"] in MAKERS and bool(r.faults.keys() & set(NEEDED[r.scan["dataset"]])) for r in readings]
    return manifest.where(~pd.Series(spoilt, dtype=bool))


def faults_in(manifest: Manifest, readings: list[Reading], lesson: str, key: str, all_scans: bool) -> list[str]:
    """List the faults of the scans that a lesson would take; of all scans where it is not known which."""
    used = set(manifest.table["subject"])
    if not all_scans:
        used = set(taken(foreseen(manifest), stand_in(lesson), *role_of(key)).table["subject"])
    mine = [r for r in readings if r.scan["subject"] in used and r.scan["dataset"] not in MAKERS]
    return [fault for reading in mine for fault in reading.faults.get(key, [])]


def stand_in(lesson: str) -> SimpleNamespace:
    """Return what the rules ask of a lesson: its number, a seed, and no choice of sites."""
    return SimpleNamespace(notebook=lesson, seed=0, settings=SimpleNamespace(real_sites=()))


def takes(manifest: Manifest, lesson: str, runs: set[str]) -> str:
    """Say what a lesson takes, and what it would take more of."""
    texts = []
    for key in sorted(runs):
        table = taken(foreseen(manifest), stand_in(lesson), *role_of(key)).table
        where = ["site", "split"] if key == "pairs" else ["split"]
        counts = table.groupby(where)["subject"].nunique()
        found = ", ".join(f"{' '.join(k) if isinstance(k, tuple) else k} {n}" for k, n in counts.items())
        texts.append(f"{'pairs' if key == 'pairs' else key.upper()}: {found}")
    if lesson == "07" and "ct" in runs:
        known = [c for c in ("fev1pp", "fev1_fvc") if c in manifest.table]
        texts.append(f"known factors: {', '.join(known) or 'none (Table VII then has emphysema alone)'}")
    if "pairs" not in runs and ROLES_OF[lesson] == ("volumes",) and len(runs) == 1:
        texts.append(f"the {'brains' if runs == {'ct'} else 'chests'} are simulated")
    return "; ".join(texts)


def needed(name: str) -> list[tuple[str, ...]]:
    """List groups of modalities, of which a scan needs one group whole."""
    if name == "own":
        return [("t1", "flair", "t2"), ("t1", "t2", "pd"), ("t1",), ("ct",)]
    pairs, volumes = ROLES[name]["pairs"], ROLES[name]["volumes"]
    return [(*pairs.inputs, pairs.target)] if isinstance(pairs, Pairs) else [(volumes.modality,)]
