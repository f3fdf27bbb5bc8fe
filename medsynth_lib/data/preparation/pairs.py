"""Prepared volumes of paired contrasts, read once and kept, and the augmentation of training samples."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import torch
from torch.utils.data import Dataset

from medsynth_lib.data.files.manifest import Manifest, Scan
from medsynth_lib.data.files.nifti import read_case
from medsynth_lib.data.preparation.contract import Contract, SavedContract, cut_off, prepare
from medsynth_lib.data.preparation.plausibility import examine
from medsynth_lib.files import DataError, say_once

Sample = dict[str, Any]  # tensors, and texts such as "subject"


def augment(sample: Sample, generator: torch.Generator, spatial: float = 0.5, intensity: float = 0.5) -> Sample:
    """Apply the paper's three augmentations (section 3) to a prepared sample.

    Spatial: a rotation by 90, 180 or 270 degrees in the x-y plane (180 where X != Y) and a flip of each axis, on x, y, mask
    and seg together. Intensity: contrast (about the brain mean) and brightness factors from U(0.3, 1.5] on the brain of the
    inputs x alone, one of each a sample, clipped to [0, 1]. Rows 1 and 2 of Table 2 differ in the intensity part.

    Args:
        sample: tensors of `prepare`; it is not changed.
        generator: on the CPU; all randomness comes from it, so a resumed run needs its state alone.
        spatial: probability of the rotation and of each flip.
        intensity: probability of the change of contrast and brightness.

    Raises:
        DataError: for z-scored inputs: brightness is a factor only for intensities from 0.
    """
    images = {k: v for k, v in sample.items() if isinstance(v, torch.Tensor)}

    def draw() -> float:
        return torch.rand((), generator=generator).item()

    if draw() < spatial:
        square = sample["x"].shape[1] == sample["x"].shape[2]
        turns = 1 + int(3 * draw()) if square else 2
        images = {k: torch.rot90(v, turns, dims=(1, 2)) for k, v in images.items()}
    for axis in (1, 2, 3):
        if draw() < spatial:
            images = {k: torch.flip(v, dims=(axis,)) for k, v in images.items()}
    if draw() < intensity:
        contrast, brightness = 1.5 - 1.2 * draw(), 1.5 - 1.2 * draw()  # draw() is in [0, 1): factors in (0.3, 1.5]
        images["x"] = adjust(images["x"], images["mask"], contrast, brightness)
    return sample | images


def adjust(x: torch.Tensor, mask: torch.Tensor, contrast: float, brightness: float) -> torch.Tensor:
    """Scale the brain of inputs by a contrast factor about its mean, then by a brightness.

    Args:
        x: inputs (c, X, Y, Z) in [0, 1].
        mask: the brain (1, X, Y, Z), boolean; outside it nothing changes.
        contrast: factor about the brain mean of each channel.
        brightness: factor after that.

    Returns:
        The inputs, clipped to [0, 1].

    Raises:
        DataError: for negative inputs (z-scores).
    """
    if x.min() < 0:
        raise DataError(
            f"inputs reach down to {x.min():g}, but brightness and contrast need [0, 1]; "
            "use another normalisation than zscore, or no augmentation."
        )
    mean = (x * mask).sum((1, 2, 3), keepdim=True) / mask.sum()
    return torch.where(mask, (((x - mean) * contrast + mean) * brightness).clip(0, 1), x)


class Remembered(Dataset):
    """The scans of a manifest, each made into a sample by `make(scan)` when first asked for, then kept in memory.

    Args:
        manifest: the scans.
        contract: how they are prepared.

    Raises:
        DataError: for an empty manifest.
    """

    def __init__(self, manifest: Manifest, contract: SavedContract):
        if not len(manifest):
            raise DataError(f"{manifest.root}: no rows are left to load; check site and split.")
        self.manifest, self.contract = manifest, contract
        self._scans, self._samples = manifest.scans(), {}

    def __len__(self) -> int:
        return len(self._scans)

    def __getitem__(self, index: int) -> Sample:
        if index not in self._samples:
            self._samples[index] = self.make(self._scans[index])
        return dict(self._samples[index])

    def make(self, scan: Scan) -> Sample:
        """Read and prepare one scan."""
        raise NotImplementedError

    def preload(self, threads: int = 2) -> Self:
        """Read all scans now, several at a time, and return the data set.

        Unpacking gzip leaves Python's lock free.
        """
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self.__getitem__, range(len(self))))
        return self


class PairedVolumes(Remembered):
    """The scans of a manifest, prepared by a `Contract`: the tensors of `prepare` plus "subject" and "site".

    A float32 scan at the paper's size takes 90 MB with its labels. Give a contract with target None for adaptation, where
    targets must not be seen. Where the crop cuts off some of a real brain, a line says so. A scan that cannot be read raises the
    errors of `read_case`.
    """

    contract: Contract

    def make(self, scan: Scan) -> Sample:
        """Read and prepare one scan."""
        case = read_case(scan, self.contract.modalities)
        examine(scan, case)
        sample = prepare(case, self.contract)
        if not scan.simulated and (cut := cut_off(case, self.contract)):
            say_once("crop", f"{scan.path(self.contract.anchor)}: {cut}. Other scans may be like it.")
        return sample | {"subject": scan["subject"], "site": scan["site"]}
