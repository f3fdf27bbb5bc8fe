"""Can these voxels be what the manifest calls them? Evidence from the values of one volume, in words.

CT: air is at -1000 HU by definition, fat near -100, muscle near 50, bone above 150. Two peaks of the histogram and the air
at the sides show a wrong slope, shift or sign. MR has no scale of its own. There, values that leap between neighbours show
a type that ran over, few or equal values show labels, and the rim of the brain against its depth shows the contrast.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from monai.data import MetaTensor
from scipy import ndimage

from medsynth_lib.data.files.manifest import Scan
from medsynth_lib.data.files.nifti import volume_name
from medsynth_lib.files import DataError, say_once

MOST, FEWEST_VOXELS = 2_000_000, 1000  # that are looked at, and that can be judged
BIN = 10.0  # HU
LOWEST_HU, PADDING = -1024.0, -1100.0  # of a 12-bit CT number; scanners mark what they did not see by less
LIGHT, HEAVY = (-1300.0, -600.0), (-400.0, 300.0)  # HU: beyond, the peaks of air or lung and of soft tissue cannot be
LIGHT_USUAL, HEAVY_USUAL, AIR_USUAL = (-1060.0, -700.0), (-150.0, 120.0), (-1060.0, -930.0)
LUNG, LEAST_LUNG = (-950.0, -500.0), 0.03  # HU, and its share of all that is not air
BONE, LEAST_BONE = 150.0, 0.002
FEWEST, FEW = 30, 64  # grey levels of a label map, and of a scan that lost most of its depth
FLAT, SOME_FLAT = 0.8, 0.5  # of neighbours that are equal
LEAP, LEAPS, SOME_LEAPS = 0.6, 0.015, 0.006  # of the range; of neighbours that differ by more
SMOOTH = 0.25  # median difference of neighbours over the range; of noise without an image it is 0.29
TOP, NEGATIVE = 0.02, 0.001  # of brain voxels that have the very highest value, or one below 0
MOSTLY = 0.9  # of brain voxels below 0: the sign was turned; a z-score has about half
SIZES, USUAL_SIZES = (60.0, 500.0), (110.0, 260.0)  # mm: longest side of a box around a brain, possible and usual
RIM_MM, DEEP_MM = 6.0, 15.0
RIM = dict(
    t1=(0.0, 1.0), t1ce=(0.0, 1.0), t2=(0.85, 9.0)
)  # rim over depth: fluid and cortex are dark in T1, bright in T2
RESCALE = "apply the rescale slope and intercept once, when converting from DICOM (air is -1000 HU, water 0)."
CAUSES = (  # slope and shift that true HU went through
    ("the intercept of -1024 was not added", 1.0, 1024.0),
    ("the intercept of -1024 was added twice", 1.0, -1024.0),
    ("the sign was turned", -1.0, 0.0),
    ("the slope is half of what it should be", 0.5, 0.0),
    ("the slope is half of what it should be", 0.5, -512.0),
    ("the slope is twice what it should be", 2.0, 0.0),
    ("the slope is twice what it should be", 2.0, 1024.0),
)


@dataclass(frozen=True)
class Finding:
    """Evidence in words, whether it rules the volume out, and what to do."""

    kind: str
    text: str
    remedy: str
    fatal: bool = False


def warnings_of(volume: MetaTensor, modality: str) -> list[str]:
    """Say what makes it doubtful that a volume is what it is called.

    Args:
        volume: (1, x, y, z) of `read_volume`: CT in HU, or a skull-stripped brain.
        modality: as in a manifest; of "seg" nothing is said.

    Returns:
        Sentences with evidence and remedy, also of what `require_plausible` refuses; none for a volume without fault.
    """
    return [f"{found.text}; {found.remedy}" for found in findings(volume, modality)]


def require_plausible(volume: MetaTensor, modality: str) -> None:
    """Raise DataError, with the evidence, where a volume cannot be what it is called.

    Args:
        volume: as in `warnings_of`.
        modality: as in a manifest.
    """
    for found in firm_findings(volume, modality):
        if found.fatal:
            raise DataError(f"{volume_name(volume)}: {found.text}; {found.remedy}")


def examine(scan: Scan, case: Mapping[str, MetaTensor]) -> None:
    """Refuse what a real scan cannot be, and print what is doubtful about it, each kind once.

    A simulated scan is what it is called.

    Args:
        scan: of a manifest.
        case: its volumes by modality.

    Raises:
        DataError: as `require_plausible`.
    """
    if scan.simulated:
        return
    for modality, volume in case.items():
        for found in findings(volume, modality):
            if found.fatal:  # the worst comes first
                raise DataError(f"{volume_name(volume)}: {found.text}; {found.remedy}")
            say_once(
                f"{found.kind} {modality}",
                f"Look at {volume_name(volume)}: {found.text}; {found.remedy} Others may be like it: verify the folder.",
            )


def findings(volume: MetaTensor, modality: str) -> list[Finding]:
    """List all that speaks against a volume, worst first."""
    found = firm_findings(volume, modality)
    if not any(f.fatal for f in found) and modality in RIM:
        found += contrast_findings(volume, modality)
    return sorted(found, key=lambda f: not f.fatal)


def firm_findings(volume: MetaTensor, modality: str) -> list[Finding]:
    """List what the values alone say, which is fast."""
    if modality == "ct":
        return ct_findings(np.asarray(volume)[0])
    if modality not in ("t1", "t1ce", "t2", "flair", "pd"):
        return []
    return mr_findings(np.asarray(volume)[0], modality.upper()) + size_findings(volume)


def size_findings(volume: MetaTensor) -> list[Finding]:
    """List what speaks against the size of a brain: the box around what is not 0, in mm."""
    where = np.asarray(volume)[0] != 0
    if where.sum() < 5 * FEWEST_VOXELS:  # a thumbnail
        return []
    sides = [np.ptp(np.flatnonzero(where.any(tuple({0, 1, 2} - {axis})))) + 1 for axis in range(3)]
    longest = float((sides * np.linalg.norm(np.asarray(volume.affine, float)[:3, :3], axis=0)).max())
    if USUAL_SIZES[0] <= longest <= USUAL_SIZES[1]:
        return []
    text = f"the box around the brain is {longest:.0f} mm long, where people have 110 to 260 mm"
    remedy = "mend the voxel sizes in the header (centimetres, inches or metres in the place of millimetres?)."
    return [Finding("size", text, remedy, not SIZES[0] <= longest <= SIZES[1])]


def ct_findings(hu: np.ndarray) -> list[Finding]:
    """List what speaks against HU (x, y, z) of a chest."""
    step = max(1, int(np.ceil((hu.size / MOST) ** (1 / 3))))
    small = hu[::step, ::step, ::step]
    values = small[small > small.min()] if (small == small.min()).mean() > 0.01 else small.ravel()  # padding is no air
    few, peaks = levels(values), two_peaks(values)
    if len(values) > FEWEST_VOXELS and few <= FEWEST:
        text = f"{few} different values are not a chest CT in HU, but a mask or a label map"
        return [Finding("levels", text, "name the image itself in the manifest.", True)]
    found = [] if peaks is None else peak_findings(*peaks, small, values)
    light = (hu >= LOWEST_HU) & (hu < LUNG[1])
    if not any(f.fatal for f in found) and not (light.any() and hu.max() > 0):
        text = f"values {float(hu.min()):g} to {float(hu.max()):g} are not a chest CT in HU"
        return [Finding("range", text, RESCALE, True)]
    return found


def peak_findings(light: float, heavy: float, hu: np.ndarray, values: np.ndarray) -> list[Finding]:
    """Compare a CT with where air, lung, fat, muscle and bone should be.

    Args:
        light: the peak (HU) of air or lung.
        heavy: the peak (HU) of soft tissue.
        hu: (x, y, z).
        values: the same without padding.
    """
    bone, cause = (values > BONE).mean(), cause_of(light, heavy)
    text = (
        f"peaks at {light:.0f} HU (air or lung should be at -1000 to -800) and at {heavy:.0f} HU (fat at -100, muscle at 50), "
        f"with {100 * bone:.1f} % above {BONE:.0f} HU (bone),"
    )
    if not (LIGHT[0] <= light <= LIGHT[1] and HEAVY[0] <= heavy <= HEAVY[1]):
        return [Finding("peaks", f"{text} are not a chest CT in HU{cause}", RESCALE, True)]
    found = []
    if not (LIGHT_USUAL[0] <= light <= LIGHT_USUAL[1] and HEAVY_USUAL[0] <= heavy <= HEAVY_USUAL[1]):
        found.append(Finding("peaks", f"{text} are unusual for a chest CT{cause}", RESCALE))
    air = air_at_sides(hu, light, heavy)
    if air is not None and not AIR_USUAL[0] <= air <= AIR_USUAL[1]:
        found.append(Finding("air", f"air around the body has {air:.0f} HU, where -1000 is right", RESCALE))
    body = values[values > LUNG[0]]
    if ((body < LUNG[1]).mean() if len(body) else 0) < LEAST_LUNG:
        text = f"less than {LEAST_LUNG:.0%} of the body lies between {LUNG[0]:.0f} and {LUNG[1]:.0f} HU, as lung does"
        found.append(Finding("lung", text, "choose the scan of the chest, in HU."))
    if bone < LEAST_BONE:
        text = f"{100 * bone:.2f} % of the voxels are above {BONE:.0f} HU, as bone is (the highest is {values.max():.0f} HU)"
        found.append(Finding("bone", text, "take the image before it was cut to a display window."))
    return found


def levels(values: np.ndarray) -> int:
    """Count the different values of a sample."""
    return len(np.unique(values[:: max(1, len(values) // 200_000)]))


def two_peaks(values: np.ndarray) -> tuple[float, float] | None:
    """Return the peaks (HU) below and above Otsu's threshold; None for few or even values."""
    if len(values) < FEWEST_VOXELS:
        return None
    low, high = np.percentile(values, (0.1, 99.9))
    counts, edges = np.histogram(values, np.arange(low - BIN, high + 2 * BIN, max(BIN, (high - low) / 2000)))
    middle, share = (edges[1:] + edges[:-1]) / 2, counts / counts.sum()
    weight, mass = np.cumsum(share), np.cumsum(share * middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (mass[-1] * weight - mass) ** 2 / (weight * (1 - weight))
    cut = int(np.nanargmax(np.where(np.isfinite(between), between, -1))) + 1
    smooth = ndimage.gaussian_filter1d(share, 2.0, mode="constant")
    if cut >= len(share) or smooth.max() < 2 * smooth.mean():  # as even as noise
        return None
    return float(middle[:cut][smooth[:cut].argmax()]), float(middle[cut:][smooth[cut:].argmax()])


def air_at_sides(hu: np.ndarray, light: float, heavy: float) -> float | None:
    """Return the median (HU) of air on a chest's four sides; None where body or padding is."""
    sides = np.concatenate([hu[[0, -1]].ravel(), hu[:, [0, -1]].ravel()])
    air = sides[(sides < (light + heavy) / 2) & (sides > max(PADDING, hu.min()))]
    return float(np.median(air)) if len(air) > 0.1 * len(sides) else None


def cause_of(light: float, heavy: float) -> str:
    """Name what would bring true HU to these peaks, as a sentence's end; "" for nothing simple."""
    for name, slope, shift in CAUSES:
        true = sorted(((light - shift) / slope, (heavy - shift) / slope))
        if -1060 <= true[0] <= -780 and HEAVY_USUAL[0] <= true[1] <= HEAVY_USUAL[1]:
            return f": as if {name}"
    if 750 <= heavy - light <= 1150:
        return f": as if all were shifted by about {round(light + 1000, -1):.0f} HU"
    return ""


def mr_findings(image: np.ndarray, name: str) -> list[Finding]:
    """List what speaks against the values (x, y, z) of a brain with a background of 0."""
    brain = image != 0
    values = image[brain]
    if len(values) < FEWEST_VOXELS:
        return []
    few, (flat, leaps, usual) = levels(values), neighbours(image, brain)
    if few <= FEWEST or flat > FLAT:
        text = f"{few} different values, and {flat:.0%} of neighbours equal, are a mask or a label map, not an image in {name}"
        return [Finding("labels", text, "name the image itself in the manifest.", True)]
    found = []
    low, top = float(values.min()), float(values.max())
    if leaps > SOME_LEAPS:
        text = (
            f"{leaps:.1%} of neighbours in the brain differ by more than {LEAP:.0%} of the range {low:g} to {top:g}, as where "
            "numbers ran over the end of a type of 8 or 16 bits"
        )
        found.append(
            Finding("wrapped", text, "convert from the original again, to float32.", leaps > LEAPS and usual < SMOOTH)
        )
    if (values < 0).mean() > NEGATIVE:
        text = f"{(values < 0).mean():.1%} of the brain is below 0 (down to {low:g}), but {name} has no negative values"
        remedy = "take scanner units: undo a z-score, or convert the original to float32."
        found.append(Finding("negative", text, remedy, (values < 0).mean() > MOSTLY))
    if (values == top).mean() > TOP:
        text = f"{(values == top).mean():.1%} of the brain has the highest value, {top:g}: bright tissue was cut off"
        found.append(Finding("cut", text, "convert from the original again, without a display window."))
    if few <= FEW or flat > SOME_FLAT:
        text = f"only {few} grey levels, and {flat:.0%} of neighbours equal"
        found.append(Finding("levels", text, "convert from the original again, to float32."))
    return found


def neighbours(image: np.ndarray, brain: np.ndarray) -> tuple[float, float, float]:
    """Return how neighbours in the brain differ.

    Returns:
        The share that is equal, the share that differs by most of the range, and the median difference over the range.
    """
    step = max(1, int((image.size / MOST) ** 0.5))
    apart = []
    for axis in range(3):
        sparse = tuple(slice(None) if a == axis else slice(None, None, step) for a in range(3))
        v, inside = (np.moveaxis(a[sparse], axis, 0) for a in (image, brain))
        apart.append(np.abs(v[1:] - v[:-1])[inside[1:] & inside[:-1]])
    gaps, span = np.concatenate(apart), np.ptp(image[brain])
    if not len(gaps):
        return 0.0, 0.0, 0.0
    return float((gaps == 0).mean()), float((gaps > LEAP * span).mean()), float(np.median(gaps) / (span or 1))


def contrast_findings(volume: MetaTensor, modality: str) -> list[Finding]:
    """Say where the rim of a brain is not as bright against its depth as in this contrast."""
    ratio = rim_over_depth(np.asarray(volume)[0], np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0))
    low, high = RIM[modality]
    if ratio is None or low <= ratio <= high:
        return []
    usual = "darker" if modality != "t2" else "brighter"
    text = (
        f"the rim of the brain has {ratio:.2f} of the brightness of its depth; fluid and cortex make it {usual} in "
        f"{modality.upper()}, so this looks like another contrast, or like an inverted image"
    )
    return [Finding("contrast", text, "check which image the manifest names.")]


def rim_over_depth(image: np.ndarray, spacing: np.ndarray) -> float | None:
    """Return the brain's median near its surface over that far from it; None for a small one.

    Args:
        image: (x, y, z), 0 outside the brain.
        spacing: voxel size (3) in mm.
    """
    steps = [max(1, round(3 / s)) for s in spacing]
    small = image[tuple(slice(None, None, step) for step in steps)]
    size = np.array(steps) * spacing
    brain = ndimage.binary_fill_holes(small != 0)
    depth = ndimage.distance_transform_edt(np.pad(brain, 1), size)[1:-1, 1:-1, 1:-1]
    rim, deep = (small[(small != 0) & where] for where in (depth <= max(RIM_MM, 1.01 * size.max()), depth > DEEP_MM))
    if min(len(rim), len(deep)) < 50 or np.median(deep) <= 0:
        return None
    return float(np.median(rim) / np.median(deep))
