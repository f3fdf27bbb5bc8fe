"""The DICOM files of one folder become one CT volume in HU, or an error that says which choice is yours.

Geometry comes from ImagePositionPatient and ImageOrientationPatient alone: file order, file names, InstanceNumber,
SliceLocation and SliceThickness are not believed. One folder must hold one series, and a series one image a position.
Enhanced (multi-frame) files are read frame by frame, by the same rules.
"""

import locale
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from medsynth_lib.data.files.paths import NO_IMAGES, ending, is_hidden
from medsynth_lib.files import DataError, say_once

AIR, CT_RANGE = -1024.0, (-1024.0, 3071.0)  # HU of a 12-bit CT number
SAME_MM = 0.01  # slices closer than this lie at one position
UNEVEN, UNEVEN_MM = 0.10, 0.06  # of the step, or mm: positions rounded to a tenth of a millimetre are even
DRIFT, TILT = 0.5, 0.2  # pixels, or degrees: a stack that leans less than either counts as straight
OTHERS = (  # modalities that lie beside CT
    "CR", "DX", "DOC", "KO", "MG", "MR", "NM", "OT", "PR", "PT", "REG", "RTDOSE", "RTIMAGE", "RTPLAN", "RTRECORD", "RTSTRUCT",
    "RWV", "SC", "SEG", "SR", "US", "XA",
)  # fmt: skip
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture: dose reports, screens
NATIVE = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.5",
)
FIXED = dict(  # what is the same all through one volume, and its name in words
    TemporalPositionIdentifier="temporal position", TemporalPositionIndex="temporal position",
    NominalPercentageOfCardiacPhase="cardiac phase", EchoNumbers="echo", ConvolutionKernel="kernel", KVP="tube voltage",
    ContrastBolusAgent="contrast agent", ImageType="image type", FrameType="frame type", StackID="stack",
)  # fmt: skip
ORDERED = dict(AcquisitionNumber="acquisition number", FrameAcquisitionNumber="acquisition number")  # may step along z
TIMES = dict(  # tells apart what nothing else does
    TriggerTime="trigger time", AcquisitionDateTime="acquisition time", AcquisitionTime="acquisition time",
    FrameAcquisitionDateTime="acquisition time", SeriesDescription="description", ContentTime="time of the image",
    InstanceNumber="instance number",
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """One slice: where it lies in the patient (LPS), how stored values become HU, and what tells it from others."""

    path: Path
    number: int  # in its file, from 0
    series: tuple[str, ...]  # series, patient and frame of reference
    position: np.ndarray  # (3) in mm, of the first pixel's centre
    axes: np.ndarray  # (2, 3): unit vectors along a row and along a column
    spacing: tuple[float, float]  # mm between columns and between rows
    shape: tuple[int, int]  # columns, rows
    rescale: tuple[float, float]  # slope and intercept
    marks: dict[str, str] = field(default_factory=dict)


def read_series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a folder that holds one CT series.

    Localisers, screen captures and other modalities beside it are left aside, and one line says so. So are second copies
    of a slice.

    Args:
        folder: with the files, of any name. Folders below it are not searched.

    Returns:
        HU (x, y, z), float32 from -1024 to 3071, and the affine (4, 4) from voxels to mm in RAS.

    Raises:
        DataError: for several series, phases or grids, a slanted or uneven stack, positions or rescaling that are missing,
            and files that are damaged or cannot be decoded.
    """
    headers = ct_images(read_headers(folder), folder)
    frames = [frame for path, header in headers.items() for frame in frames_of(path, header)]
    require_one_series(frames, folder)
    require_one_grid(frames, folder)
    frames = without_copies(sorted(frames, key=height), headers, folder)
    if len(frames) < 2:
        raise DataError(f"{folder}: {len(frames)} readable DICOM slice(s); download the series again.")
    require_one_phase(frames, folder)
    affine = affine_of_stack(frames, folder)
    volume = np.empty((*frames[0].shape, len(frames)), np.float32)
    for k, (_, hu) in enumerate(in_hu(frames, headers)):
        volume[..., k] = hu
    return volume, affine


def read_headers(folder: Path) -> dict[Path, Any]:
    """Read the headers of a folder's DICOM files.

    Returns:
        Path -> pydicom data set without pixels, sorted by name.

    Raises:
        DataError: for a folder or file that cannot be read, and a damaged file among slices.
    """
    try:
        paths = sorted(p for p in folder.iterdir() if p.is_file() and not is_hidden(p.name))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be listed ({error.strerror}); name the folder of one DICOM series."
        ) from error
    read = {path: header_of(path) for path in paths}
    found = {path: header for path, header in read.items() if header is not None}
    endings = {ending(path) for path in found} | {".dcm"}
    broken = [p.name for p in paths if p not in found and ending(p) in endings and p.name.lower() not in NO_IMAGES]
    if broken:
        raise DataError(
            f"{folder}: {len(broken)} file(s) such as {broken[0]} are no readable DICOM; "
            "download the series again, or move them out if they are no slices."
        )
    return found


def header_of(path: Path) -> Any | None:
    """Read one file's header; None where it is not DICOM, or a DICOMDIR."""
    pydicom = library(path)
    try:
        with pydicom.config.disable_value_validation():
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            known = header.get("SOPClassUID") and header.get("SeriesInstanceUID")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); allow reading it, or copy it again.") from error
    except Exception:  # whatever a parser meets in bytes that are something else
        return None
    return header if known else None


def library(path: Path) -> Any:
    """Return pydicom.

    Raises:
        DataError: where it is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise DataError(f"{path}: reading DICOM needs the package pydicom; run: pip install pydicom") from error
    return pydicom


def ct_images(headers: dict[Path, Any], folder: Path) -> dict[Path, Any]:
    """Return the headers of CT slices; say which others are left aside.

    Raises:
        DataError: where no slice is among them.
    """
    kinds = {path: kind_of(path, header) for path, header in headers.items()}
    aside = Counter(kind for kind in kinds.values() if kind != "CT")
    listed = ", ".join(f"{n} x {kind}" for kind, n in sorted(aside.items()))
    if len(aside) == len(set(kinds.values())):
        below = sorted(p.name for p in folder.iterdir() if p.is_dir())
        hint = f"; folders below it are not searched ({', '.join(below[:3])}): name one of them" if below else ""
        raise DataError(
            f"{folder}: 0 readable DICOM slices of CT{f', but {listed}' if listed else ''}{hint}; "
            "give the folder of one CT series, or download it again."
        )
    if aside:
        say_once(f"aside {folder}", f"{folder}: left aside, since they are no CT slices: {listed}")
    return {path: header for path, header in headers.items() if kinds[path] == "CT"}


def kind_of(path: Path, header: Any) -> str:
    """Return "CT" for a slice, else what a file holds.

    Raises:
        DataError: for a file that does not say what it is.
    """
    try:
        modality = text(header.get("Modality"))
        samples, captured = header.get("SamplesPerPixel", 1), str(header.SOPClassUID).startswith(CAPTURE)
        scout = "LOCALIZER" in text(header.get("ImageType")).upper()
    except Exception as error:  # values of the wrong kind raise whatever their use raises
        raise damaged(path, error) from error
    if modality not in ("CT", *OTHERS) or samples not in (1, 3):
        raise damaged(path, f"Modality '{modality}', {samples} samples a pixel")
    if modality != "CT":
        return modality
    return "localiser" if scout else "screen capture" if captured or samples == 3 else "CT"


def damaged(path: Path, reason: Any) -> DataError:
    """Make the error of a header that makes no sense."""
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    return DataError(f"{path}: damaged DICOM header, or no image ({lines[-1]}); download it again, or move it out.")


def text(value: Any) -> str:
    """Return a header's value as text; several values are joined."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return "\\".join(map(str, value)) if several else "" if value is None else str(value).strip()


def frames_of(path: Path, header: Any) -> list[Frame]:
    """Return the slices of one file, checked.

    Raises:
        DataError: where a slice's position, spacing, orientation or rescaling is missing or impossible.
    """
    try:
        if "PerFrameFunctionalGroupsSequence" in header:
            return list(enhanced(path, header))
        if int(header.get("NumberOfFrames") or 1) > 1:
            raise DataError(f"{path}: DICOM with several frames but no positions; export single slices.")
        return [frame(path, 0, header, header.get)]
    except DataError:
        raise
    except Exception as error:  # values of the wrong kind raise whatever their use raises
        raise damaged(path, error) from error


def enhanced(path: Path, header: Any) -> Iterator[Frame]:
    """Yield the frames of an enhanced file, whose values lie in groups, shared or per frame."""
    shared = next(iter(header.get("SharedFunctionalGroupsSequence") or []), None)
    groups = header.PerFrameFunctionalGroupsSequence
    if int(header.NumberOfFrames) != len(groups):
        raise DataError(
            f"{path}: damaged DICOM: {header.NumberOfFrames} frames, but {len(groups)} descriptions; download it again."
        )
    for number, group in enumerate(groups):
        found = {}
        for part in filter(None, (shared, group)):  # what a frame says itself wins
            for sequence in part:
                for item in (sequence.value or [])[:1] if sequence.VR == "SQ" else ():
                    found |= {element.keyword: element.value for element in item}
        yield frame(path, number, header, lambda name, found=found: found.get(name, header.get(name)))


def frame(path: Path, number: int, header: Any, get: Any) -> Frame:
    """Make one slice of what `get(keyword)` returns."""
    numbers = {}
    for name, n in dict(ImagePositionPatient=3, ImageOrientationPatient=6, PixelSpacing=2).items():
        values = np.array([] if get(name) is None else get(name), float).ravel()
        if len(values) != n or not np.isfinite(values).all():
            raise DataError(
                f"{path}: DICOM without a usable {name} ({text(get(name)) or 'missing'}), so where the slice lies is not known; "
                "export the series again as original CT images."
            )
        numbers[name] = values
    axes = numbers["ImageOrientationPatient"].reshape(2, 3)
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(axes[0] @ axes[1]) > 0.01 or numbers["PixelSpacing"].min() <= 0:
        raise DataError(
            f"{path}: ImageOrientationPatient {axes.ravel().tolist()} is not two axes at right angles, or PixelSpacing "
            f"{numbers['PixelSpacing'].tolist()} is not above 0; export the series again."
        )
    rows_apart, columns_apart = numbers["PixelSpacing"].tolist()
    marks = {name: text(get(name)) for name in (*FIXED, *ORDERED, *TIMES)}
    marks["ImageType"] = "\\".join(
        marks["ImageType"].split("\\")[:3]
    )  # what follows is the maker's own, even per slice
    series = tuple(text(header.get(name)) for name in ("SeriesInstanceUID", "PatientID", "FrameOfReferenceUID"))
    return Frame(
        path, number, series, numbers["ImagePositionPatient"], axes / lengths[:, None], (columns_apart, rows_apart),
        (int(header.Columns), int(header.Rows)), rescaling(path, get), marks,
    )  # fmt: skip


def rescaling(path: Path, get: Any) -> tuple[float, float]:
    """Return the slope and intercept that give HU."""
    slope, intercept = get("RescaleSlope"), get("RescaleIntercept")
    if slope is None or intercept is None:
        raise DataError(
            f"{path}: no RescaleSlope and RescaleIntercept, so HU are not known; export the original CT images, "
            "or write both if you know them."
        )
    if not (np.isfinite(float(slope)) and np.isfinite(float(intercept)) and float(slope) > 0):
        raise DataError(
            f"{path}: RescaleSlope {slope} and RescaleIntercept {intercept} are not possible; export it again."
        )
    if (unit := text(get("RescaleType")).upper()) not in ("", "HU", "US"):  # US: unspecified
        raise DataError(f"{path}: RescaleType is {unit}, not HU; choose the series of plain CT images.")
    return float(slope), float(intercept)


def require_one_series(frames: Sequence[Frame], folder: Path) -> None:
    """Raise DataError, with a list of them, where a folder holds several series."""
    groups = grouped(frames, lambda f: f.series)
    if len(groups) > 1:
        names = ("series", "patient", "frame of reference")
        differing = [k for k, values in enumerate(zip(*groups, strict=True)) if len(set(values)) > 1]
        labels = {key: ", ".join(f"{names[k]} {key[k] or 'without a number'}" for k in differing) for key in groups}
        listed = "; ".join(described(group, labels[key]) for key, group in groups.items())
        raise DataError(
            f"{folder}: {len(groups)} series in one DICOM folder: {listed}; choose one, and move the others out."
        )


def require_one_grid(frames: Sequence[Frame], folder: Path) -> None:
    """Raise DataError where slices differ in size, spacing or orientation."""
    groups: list[list[Frame]] = []
    for one in frames:
        group = next((g for g in groups if same_grid(g[0], one)), None)
        groups.append([one]) if group is None else group.append(one)
    if len(groups) > 1:
        listed = "; ".join(
            described(g, f"{g[0].shape[0]} x {g[0].shape[1]} pixels of {g[0].spacing[0]:g} x {g[0].spacing[1]:g} mm, "
                         f"orientation {np.round(g[0].axes, 3).ravel().tolist()}")
            for g in sorted(groups, key=len, reverse=True)
        )  # fmt: skip
        raise DataError(
            f"{folder}: slices of {len(groups)} grids in one series: {listed}; keep one, and move the others (often a "
            "localiser) out."
        )


def same_grid(a: Frame, b: Frame) -> bool:
    """Return whether two slices differ in their position alone, up to rounding."""
    return (
        a.shape == b.shape and np.allclose(a.spacing, b.spacing, rtol=1e-3) and np.allclose(a.axes, b.axes, atol=2e-3)
    )


def described(frames: Sequence[Frame], name: str) -> str:
    """Describe some slices for an error: how many, of which file, and what tells them apart."""
    about = [frames[0].marks[key] for key in ("SeriesDescription", "ConvolutionKernel") if frames[0].marks.get(key)]
    return f"{name or 'no UID'} ({len(frames)} slices such as {frames[0].path.name}{''.join(f', {a}' for a in about)})"


def grouped(frames: Iterable[Frame], key: Any) -> dict[Any, list[Frame]]:
    """Sort slices into groups, in order of their first."""
    groups: dict[Any, list[Frame]] = {}
    for one in frames:
        groups.setdefault(key(one), []).append(one)
    return groups


def height(frame: Frame) -> float:
    """Return a slice's position (mm) along its normal."""
    return float(frame.position @ np.cross(*frame.axes))


def without_copies(frames: Sequence[Frame], headers: dict[Path, Any], folder: Path) -> list[Frame]:
    """Return one slice a position: a second one must have the same voxels.

    Args:
        frames: sorted by height.
        headers: of their files.
        folder: what errors call it.

    Raises:
        DataError: where images at one position differ. It says what tells them apart.
    """
    places: list[list[Frame]] = []
    for one in frames:
        if places and height(one) - height(places[-1][0]) < SAME_MM:
            places[-1].append(one)
        else:
            places.append([one])
    for place in places:
        if len(place) > 1:
            first, *others = in_hu(place, headers)
            if not all(np.array_equal(first[1], hu) and same_place(first[0], f) for f, hu in others):
                raise DataError(
                    f"{folder}: {len(frames)} DICOM slices at {len(places)} positions, such as {place[0].path.name} and "
                    f"{place[1].path.name}: several scans in one series, told apart by {difference(places)}; choose one, "
                    "and move the others out."
                )
    if len(places) < len(frames):
        say_once(f"copies {folder}", f"{folder}: left aside: {len(frames) - len(places)} copies of slices")
    return [place[0] for place in places]


def same_place(a: Frame, b: Frame) -> bool:
    """Return whether two slices at one height cover each other."""
    return bool(np.abs(a.position - b.position).max() < SAME_MM)


def difference(places: Sequence[Sequence[Frame]]) -> str:
    """Say which header value tells images at one position apart, with how many slices of each."""
    shared = [place for place in places if len(place) > 1]
    for name, words in (FIXED | ORDERED | TIMES).items():
        if all(len({f.marks[name] for f in place}) == len(place) for place in shared):
            values = Counter(f.marks[name] for place in places for f in place)
            if len(values) > 8:
                return words
            return f"{words}: " + ", ".join(f"{value or 'none'} ({n} slices)" for value, n in values.items())
    return "nothing but their voxels"


def require_one_phase(frames: Sequence[Frame], folder: Path) -> None:
    """Raise DataError where several phases, kernels or acquisitions share one stack.

    Args:
        frames: sorted by height, one a position.
        folder: what errors call it.
    """
    for name, words in (FIXED | ORDERED).items():
        values = [f.marks[name] for f in frames]
        runs, kinds = len(list(groupby(values))), len(set(values))
        if kinds > 1 and (name in FIXED or runs > kinds):
            by_value = grouped(frames, lambda f, name=name: f.marks[name])
            listed = "; ".join(described(g, key or "none") for key, g in by_value.items())
            raise DataError(
                f"{folder}: {kinds} values of {words} in one DICOM series: {listed}; choose one, and move the others out."
            )


def affine_of_stack(frames: Sequence[Frame], folder: Path) -> np.ndarray:
    """Return the affine (4, 4) to RAS mm of slices that lie one above the other, evenly.

    Args:
        frames: sorted by height.
        folder: what errors call it.

    Raises:
        DataError: for a stack that leans, as of a tilted gantry, or is uneven.
    """
    first, k = frames[0], np.arange(len(frames))
    turn = np.array([*first.axes, np.cross(*first.axes)])  # rows: along x, along y, upwards
    places = np.array([turn @ f.position for f in frames])
    slope, start = np.polyfit(k, places, 1)
    off, gaps = np.abs(places - (k[:, None] * slope + start)).max(0), np.diff(places[:, 2])
    if off[2] > max(UNEVEN * slope[2], UNEVEN_MM):
        widest = int(gaps.argmax())
        raise DataError(
            f"{folder}: DICOM slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart, the widest gap between "
            f"{frames[widest].path.name} and {frames[widest + 1].path.name}; a slice is missing, or the spacing changes: "
            "download the series again, or choose one that is even."
        )
    lean = np.hypot(*slope[:2])
    angle = np.degrees(np.arctan2(lean, slope[2]))
    if (off[:2] > DRIFT * np.array(first.spacing)).any() or (
        lean * k[-1] > DRIFT * min(first.spacing) and angle > TILT
    ):
        raise DataError(
            f"{folder}: DICOM slices are shifted against each other, by {lean:.2f} mm a slice ({angle:.1f} degrees: a "
            "tilted gantry?); straighten the series first (dcm2niix does), or choose another one."
        )
    affine = np.eye(4)
    affine[:3, :3] = turn.T * (*first.spacing, slope[2])
    affine[:3, 3] = turn.T @ np.array([*places[0, :2], start[2]])
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's world is left-posterior-superior


def in_hu(frames: Sequence[Frame], headers: dict[Path, Any]) -> Iterator[tuple[Frame, np.ndarray]]:
    """Yield each slice with its HU (columns, rows), float32; each file is decoded once."""
    path, values = None, None
    for one in frames:
        if one.path != path:
            path, values = one.path, stored(one.path, headers[one.path])
        slope, intercept = one.rescale
        hu = (values[one.number].T * np.float64(slope) + intercept).astype(np.float32)
        yield one, padding_to_air(hu, one, headers[one.path]).clip(*CT_RANGE)


def padding_to_air(hu: np.ndarray, frame: Frame, header: Any) -> np.ndarray:
    """Give pixels outside the field of view, as the header marks them, the value of air."""
    mark = header.get("PixelPaddingValue")
    if mark is None:
        return hu
    limit = header.get("PixelPaddingRangeLimit")
    ends = [value * frame.rescale[0] + frame.rescale[1] for value in (mark, mark if limit is None else limit)]
    padded = (hu >= min(ends)) & (hu <= max(ends))
    # some exports name a value that tissue has, too: only one that fills a corner is believed
    believed = max(ends) > CT_RANGE[1] or padded[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    return np.where(padded, np.float32(AIR), hu) if believed else hu


def stored(path: Path, header: Any) -> np.ndarray:
    """Decode a file's stored values (frames, rows, columns).

    Raises:
        DataError: for damaged pixels and a compression that cannot be undone.
    """
    pydicom = library(path)
    meta = header.file_meta
    syntax = meta.get("TransferSyntaxUID") or pydicom.uid.ImplicitVRLittleEndian
    try:
        if syntax not in NATIVE:
            return decoded(path, header)
        whole = pydicom.dcmread(path, force=True)
        whole.file_meta.TransferSyntaxUID = syntax
        values = whole.pixel_array
        return as_signed(values[None] if values.ndim == 2 else values, header)
    except DataError:
        raise
    except Exception as error:  # decoders have no common exception
        reason = re.sub(r"\s+", " ", str(error).strip())[-160:]
        raise DataError(
            f"{path}: damaged DICOM, or pixels in a compression that cannot be decoded ({syntax.name}: {reason}); download "
            "it again, or decompress it (gdcmconv --raw)."
        ) from error


@contextmanager
def same_locale() -> Iterator[None]:
    """Give the process its locale back after this block.

    ITK's DICOM sets it to C. From then on Python would read every text file as ASCII.
    """
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@same_locale()
def decoded(path: Path, header: Any) -> np.ndarray:
    """Undo JPEG compression of one slice, through ITK, which also rescales: that is undone."""
    if header.get("PhotometricInterpretation") != "MONOCHROME2" or int(header.get("NumberOfFrames") or 1) > 1:
        raise DataError(
            f"{path}: {header.file_meta.TransferSyntaxUID.name} of several frames, or of inverted grey values; "
            "decompress it first (gdcmconv --raw)."
        )
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(path), sitk.sitkFloat64))
    return np.rint((values - float(header.RescaleIntercept)) / float(header.RescaleSlope))


def as_signed(values: np.ndarray, header: Any) -> np.ndarray:
    """Drop the bits above those that are stored: old files keep drawings in them."""
    bits, top = int(header.BitsStored), int(header.HighBit) + 1
    wide = values.astype(np.int32 if bits <= 16 else np.int64) >> (top - bits) & ((1 << bits) - 1)
    return wide - ((wide >> (bits - 1)) << bits) if header.PixelRepresentation else wide
