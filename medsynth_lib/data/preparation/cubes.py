"""All that HA-GAN does to its data before training (section IV-A): trim blank slices, resize to N^3, scale to [-1, 1].

Chest CT is cut to an intensity window in Hounsfield units; brain T1 must come skull-stripped and is scaled by its own
brightest tissue. A `CubeContract` states the preparation and travels with the trained weights, as `Contract` does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, ResampleToMatch, Resize, SpatialCrop
from torch.utils.data import Dataset

from medsynth_lib.data.files.manifest import Scan
from medsynth_lib.data.files.nifti import read_case, read_volume, volume_name
from medsynth_lib.data.preparation.contract import SavedContract, require_stripped
from medsynth_lib.data.preparation.crop import voxel_size
from medsynth_lib.data.preparation.pairs import Remembered, Sample
from medsynth_lib.data.preparation.plausibility import examine, require_plausible
from medsynth_lib.data.preparation.volume_cache import build
from medsynth_lib.data.simulation.fields import gaussian_blur
from medsynth_lib.data.simulation.subject import make_subject
from medsynth_lib.files import DataError

CUBES_VERSION = 1  # raise when the preparation below changes: cubes in the cache are then made anew
WINDOW = (-1024.0, 600.0)  # HU, section IV-A


@dataclass(frozen=True)
class CubeContract(SavedContract):
    """The preparation of single volumes, saved beside a model's weights.

    Raises:
        DataError: for a modality that is neither "ct" nor "t1".
    """

    modality: str = "ct"  # "ct" or "t1"
    size: int = 64  # N, voxels along each axis of the cube
    orientation: str = "RAS"
    window: tuple = WINDOW  # of CT, HU
    percentile: float = 99.5  # of the brain in T1; it becomes 1

    FIELD_TYPES: ClassVar = dict(modality=str, size=int, orientation=str, percentile=float)

    def __post_init__(self) -> None:
        if self.modality not in ("ct", "t1"):
            raise DataError(f"CubeContract: modality '{self.modality}' is unknown; use 'ct' or 't1'.")
        object.__setattr__(self, "window", tuple(self.window))  # YAML gives a list

    @property
    def modalities(self) -> tuple[str]:
        """The one modality, as a `Contract` lists its own."""
        return (self.modality,)


def prepare_cube(volume: MetaTensor, contract: CubeContract) -> MetaTensor:
    """Turn a volume into a network's cube.

    Args:
        volume: (1, x, y, z) of `read_volume`, CT in HU or skull-stripped T1.
        contract: how it is prepared.

    Returns:
        (1, N, N, N), float32 in [-1, 1]. Its affine says where it came from: voxels are as anisotropic as the trimmed
        volume was.

    Raises:
        DataError: for a CT that is not in HU and a T1 with its skull.
    """
    volume = Orientation(axcodes=contract.orientation, labels=None)(volume)
    scaled = scale_ct(volume, contract.window) if contract.modality == "ct" else scale_t1(volume, contract.percentile)
    return resize(trim(scaled), contract.size).clamp(-1, 1)  # rounding


def scale_ct(volume: MetaTensor, window: tuple[float, float] = WINDOW) -> MetaTensor:
    """Cut HU to the window and map it to [-1, 1]: v = 2 (h - low) / (high - low) - 1.

    Scanners fill what lies outside their field of view with -2000 or less, which the window takes for air.

    Raises:
        DataError: where nothing of the rest is as light as lung, or nothing heavier than water, and where air and soft tissue
            lie where they cannot be in HU.
    """
    low, high = window
    require_plausible(volume, "ct")
    return 2 * (volume.clamp(low, high) - low) / (high - low) - 1


def to_hu(cube: torch.Tensor, window: tuple[float, float] = WINDOW) -> torch.Tensor:
    """Undo `scale_ct`: [-1, 1] back to HU; what the window cut off stays cut."""
    low, high = window
    return (cube + 1) / 2 * (high - low) + low


def scale_t1(volume: MetaTensor, percentile: float = 99.5) -> MetaTensor:
    """Map a skull-stripped T1 to [-1, 1]: 0 to -1, the brain's upper percentile to 1, clipped.

    Raises:
        DataError: for a volume with its skull or with negative values.
    """
    require_stripped(volume)
    if volume.min() < 0:
        raise DataError(
            f"{volume_name(volume)}: a T1 image has no negative values ({float(volume.min()):g}); undo its scaling."
        )
    top = float(np.percentile(volume[volume > 0].numpy(), percentile))
    return 2 * (volume / top).clamp(max=1) - 1


def trim(volume: MetaTensor) -> MetaTensor:
    """Cut off outer slices, along each axis, that hold a single value: the paper's blank slices.

    Raises:
        DataError: where nothing is left.
    """
    v = volume[0]
    start, stop = [], []
    for axis in range(3):
        slices = v.movedim(axis, 0).flatten(1)
        used = torch.nonzero(slices.amax(1) > slices.amin(1))[:, 0]
        if not len(used):
            raise DataError(f"{volume_name(volume)}: every slice is blank; convert the file again.")
        start.append(int(used[0]))
        stop.append(int(used[-1]) + 1)
    return SpatialCrop(roi_start=start, roi_end=stop)(volume)


def resize(volume: MetaTensor, size: int) -> MetaTensor:
    """Resize to (1, size, size, size): trilinear, after smoothing along axes that shrink.

    The smoothing prevents aliasing. MONAI's own takes the world outside the image for 0, which is not air here; this one
    weighs the voxels inside alone.
    """
    sigma = [max(0.0, (n / size - 1) / 2) for n in volume.shape[1:]]
    smooth = MetaTensor(gaussian_blur(volume.as_tensor(), sigma), affine=volume.affine)
    return Resize([size] * 3, mode="trilinear", align_corners=False)(smooth)


def described(cube: MetaTensor, scan: Scan) -> Sample:
    """Make a sample of a cube: "x" in 16-bit floats, "spacing" (3) in mm, "subject"."""
    spacing = torch.tensor(voxel_size(cube), dtype=torch.float32)
    return dict(x=cube.as_tensor().half(), spacing=spacing, subject=scan["subject"])


def cube_of(scan: Scan, contract: CubeContract) -> MetaTensor:
    """Read a scan and prepare it: (1, N, N, N) in [-1, 1]."""
    volume = read_volume(scan.path(contract.modality))
    examine(scan, {contract.modality: volume})
    return prepare_cube(volume, contract)


class Cubes(Remembered):
    """The volumes of a manifest's `ct` or `t1` column as cubes, kept in memory as 16-bit floats.

    A sample has "x" (1, N, N, N) float32 in [-1, 1], "spacing" (3) in mm and "subject".
    """

    contract: CubeContract

    def make(self, scan: Scan) -> Sample:
        """Read and prepare one scan."""
        return described(cube_of(scan, self.contract), scan)

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return sample | {"x": sample["x"].float()}

    def on_disk(self, folder: Path | str, key: str, jobs: int = 1, progress: bool = False) -> "CubesOnDisk":
        """Make all cubes once and read them from a volume cache: memory holds none of them.

        Args:
            folder, key, jobs, progress: as in `volume_cache.build`, whose errors are raised. `key` names scans and contract.
        """
        return CubesOnDisk(self, folder, key, jobs, progress)


class CubesOnDisk(Dataset):
    """`Cubes` by way of `Cubes.on_disk`: 3,000 of 256^3 voxels take 100 GB."""

    def __init__(self, cubes: Cubes, folder: Path | str, key: str, jobs: int, progress: bool):
        self.manifest, self.contract = cubes.manifest, cubes.contract
        tasks = [(scan, cubes.contract) for scan in cubes.manifest.scans()]
        self.volumes = build(stored_cube, tasks, folder, key, jobs, progress)

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> Sample:
        sample = self.volumes[index]
        return sample | {"spacing": torch.tensor(sample["spacing"])}


def stored_cube(scan: Scan, contract: CubeContract) -> tuple[np.ndarray, dict[str, Any]]:
    """Make the cube of one scan, and what is stored beside it."""
    sample = described(cube_of(scan, contract), scan)
    return sample["x"].numpy(), dict(spacing=sample["spacing"].tolist(), subject=sample["subject"])


class LabelledCubes(Cubes):
    """Simulated T1 cubes with "labels" (1, N, N, N), uint8 index into `atlas.STRUCTURES`; a tumour is background.

    Labels are not stored with the images: a subject is its seed, and is made once more.
    """

    def make(self, scan: Scan) -> Sample:
        """Read and prepare one scan, and simulate its labels."""
        volume = read_volume(scan.path(self.contract.modality))
        cube = prepare_cube(volume, self.contract)
        subject = make_subject(
            int(scan["subject"]), tuple(volume.shape[1:]), float(voxel_size(volume)[0]), scan["tumour"]
        )
        labels = MetaTensor(torch.from_numpy(subject.structures())[None], affine=subject.affine)
        labels = ResampleToMatch(mode="nearest", padding_mode="zeros")(labels, cube)
        return described(cube, scan) | {"labels": labels.as_tensor().to(torch.uint8)}


class LesionCubes(Cubes):
    """T1 cubes with "seg" (1, N, N, N), uint8 BraTS labels of the manifest's `seg` column (nearest voxel)."""

    def make(self, scan: Scan) -> Sample:
        """Read and prepare one scan and its labels."""
        case = read_case(scan, self.contract.modalities)
        examine(scan, {k: v for k, v in case.items() if k != "seg"})
        cube = prepare_cube(case[self.contract.modality], self.contract)
        seg = ResampleToMatch(mode="nearest", padding_mode="zeros")(case["seg"], cube)
        return described(cube, scan) | {"seg": seg.as_tensor().to(torch.uint8)}
