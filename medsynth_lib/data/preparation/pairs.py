"""Prepared volumes of paired contrasts, read once and kept, and the augmentation of training samples."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import Dataset

from medsynth_lib.data.files.nifti import read_case
from medsynth_lib.data.preparation.contract import prepare
from medsynth_lib.files import DataError


def augment(sample, generator, spatial=0.5, intensity=0.5):
    """The paper's three augmentations (section 3) on a prepared sample; returns a new one.

    With probability `spatial` each: rotation by 90, 180 or 270 degrees in the x-y plane (180 where X != Y), a flip of
    each axis, on x, y, mask and seg together. With probability `intensity`: contrast (about the brain mean) and
    brightness factors from U(0.3, 1.5] on the brain of the inputs x only, one of each a sample, clipped to [0, 1].
    (Rows 1 and 2 of Table 2 differ in the intensity part.)

    All randomness comes from `generator` (CPU), so its state is all that a resumed run needs.
    Raises DataError for z-scored inputs: brightness is a factor only for intensities from 0.
    """
    images = {k: v for k, v in sample.items() if isinstance(v, torch.Tensor)}

    def draw():
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


def adjust(x, mask, contrast, brightness):
    """Scale the brain of inputs x (c, X, Y, Z) in [0, 1] by a contrast factor about its mean, then by a brightness.

    `mask` is (1, X, Y, Z) bool; outside it nothing changes. The result is clipped to [0, 1].
    Raises DataError for negative inputs (z-scores).
    """
    if x.min() < 0:
        raise DataError(
            f"inputs reach down to {x.min():g}, but brightness and contrast need [0, 1]; "
            "use another normalisation than zscore, or no augmentation."
        )
    mean = (x * mask).sum((1, 2, 3), keepdim=True) / mask.sum()
    return torch.where(mask, (((x - mean) * contrast + mean) * brightness).clip(0, 1), x)


class Remembered(Dataset):
    """The rows of a manifest, each made into a sample by ``make(row)`` when first asked for, then kept in memory.

    Raises DataError for an empty manifest.
    """

    def __init__(self, frame, contract):
        if frame.empty:
            raise DataError(f"{frame.attrs.get('root', 'manifest')}: no rows are left to load; check site and split.")
        self.frame, self.contract = frame.reset_index(drop=True), contract
        self._cache = {}

    def __len__(self):
        return len(self.frame)

    def __getitem__(self, index):
        if index not in self._cache:
            self._cache[index] = self.make(self.frame.iloc[index])
        return dict(self._cache[index])

    def preload(self, threads=2):
        """Read all scans now, several at a time (unpacking gzip leaves Python's lock free); returns self."""
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self.__getitem__, range(len(self))))
        return self


class PairedVolumes(Remembered):
    """The scans of a manifest, prepared by a contract: `prepare`'s tensors plus "subject" and "site".

    A float32 scan at the paper's size takes 90 MB with its labels. Give a contract with target None for adaptation, where
    targets must not be seen. Raises `read_case`'s errors when a scan is read.
    """

    def make(self, row):
        sample = prepare(read_case(row, self.contract.modalities), self.contract)
        return sample | {"subject": row["subject"], "site": row["site"]}

