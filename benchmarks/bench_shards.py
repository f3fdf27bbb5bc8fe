"""Volumes a second from .nii.gz and from the sharded cache (8 and 16 bit), whole and an eighth of the slices.

The volumes are simulated tumour-free brains (T1, site A) in [-1, 1], made at a quarter of the size and interpolated, with
fresh noise, so that making them takes no time. Read with the page cache warm or cold (posix_fadvise) in one thread, and by a
DataLoader with two workers. PSNR is that of the round trip, within the brain.
"""

import os
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from common import arguments, write
from torch.utils.data import DataLoader, Dataset

from medsynth_lib.data.files.nifti import read_volume, write_volume
from medsynth_lib.data.preparation.volume_cache import build
from medsynth_lib.data.simulation.scanner import SITES, scan
from medsynth_lib.data.simulation.subject import make_subject

SECONDS = 1.0  # a measurement reads for about so long
FIELD_MM = 192  # field of view: the brain fills a fifth of it, as in cropped data
STORED = 1000  # int16 of the brightest voxel


def make(seed, size):
    """A simulated tumour-free brain (1, size, size, size) in [-1, 1], on the 1 / STORED grid of its int16 file; and its name."""
    coarse = size // 4
    subject = make_subject(seed, (coarse,) * 3, FIELD_MM / coarse, tumour=False)
    image = torch.as_tensor(scan(subject, SITES["A"], "t1")).float()[None, None]
    image = torch.nn.functional.interpolate(image, scale_factor=4, mode="trilinear")[0]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    image = torch.where(image > 0, (image / image.max() + 0.01 * noise).clip(0.01, 1), 0.0)
    return (image * STORED).round() / STORED * 2 - 1, dict(subject=f"{seed:05d}")


class NiftiVolumes(Dataset):
    """The same volumes as one .nii.gz each; slices can only be cut after everything was unpacked."""

    def __init__(self, paths, gain):
        self.paths, self.gain = paths, gain

    def __len__(self):
        return len(self.paths)

    def read(self, i, start=None, stop=None):
        return read_volume(self.paths[i]).as_tensor()[:, start:stop] * self.gain - 1


class Parts(Dataset):
    """Item i is slices start to stop of volume i."""

    def __init__(self, volumes, start, stop):
        self.volumes, self.start, self.stop = volumes, start, stop

    def __len__(self):
        return len(self.volumes)

    def __getitem__(self, i):
        return self.volumes.read(i % len(self.volumes), self.start, self.stop)


class Again(Parts):
    """The same list many times over, for a measurement that is long enough."""

    def __len__(self):
        return 10**6


def drop_from_page_cache(folder):
    """Ask the system to forget the folder's files; True where it knows how to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.rglob("*.n*"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # what is not yet on the disk cannot be forgotten
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def per_second(items, seconds=SECONDS):
    """Items a second over whole passes until the time is over (at least one pass)."""
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < seconds:
        for i in range(len(items)):
            items[i]
        count += len(items)
    return count / (time.perf_counter() - began)


def with_workers(volumes, start, stop, workers=2):
    """Items a second of a DataLoader, batches of one, its start left out."""
    batches = iter(DataLoader(Again(volumes, start, stop), num_workers=workers))
    for _ in range(workers):
        next(batches)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        next(batches)
        count += 1
    return count / (time.perf_counter() - began)


def measure(name, volumes, folder, original, written_s):
    """Two rows, whole volume and an eighth of the slices, for one format."""
    size = original.shape[1]
    error = (volumes.read(0) - original)[original > -1].square().mean().item()  # the background is exact anyway
    psnr = 10 * np.log10(4 / error) if error > 1e-13 else np.inf  # the range is 2
    megabytes = sum(p.stat().st_size for p in folder.rglob("*.n*")) / len(volumes) / 1e6
    for part, start, stop in (("whole", 0, size), ("eighth", size // 2, size // 2 + size // 8)):
        items = Parts(volumes, start, stop)
        cold = per_second(items, 0) if drop_from_page_cache(folder) else None
        yield dict(
            size=size,
            format=name,
            part=part,
            slices=stop - start,
            volumes=len(volumes),
            mb_a_volume=round(megabytes, 2),
            psnr_db=round(float(psnr), 1) if np.isfinite(psnr) else "exact",
            write_s_a_volume=round(written_s / len(volumes), 2),
            cold_per_s=cold and round(cold, 1),
            warm_per_s=round(per_second(items), 1),
            two_workers_per_s=round(with_workers(volumes, start, stop), 1),
        )


def write_niftis(folder, made, dtype):
    """One file a volume: intensities from 0 to STORED as int16, or from 0 to 2 as float32."""
    gain = STORED / 2 if dtype == "int16" else 1
    paths = [folder / f"{metadata['subject']}.nii.gz" for _, metadata in made]
    for path, (volume, _) in zip(paths, made, strict=True):
        values = (volume[0] + 1) * gain
        write_volume(path, values.round() if dtype == "int16" else values, np.eye(4), dtype)
        assert nib.load(path).get_data_dtype() == dtype
    return NiftiVolumes(paths, 1 / gain)


def compare(root, size, number, dtypes):
    """Rows of the .nii.gz of the given types and of both kinds of shards."""
    made = [make(seed, size) for seed in range(number)]
    for dtype in dtypes:
        began = time.perf_counter()
        volumes = write_niftis(root / dtype, made, dtype)
        yield from measure(f"nii.gz {dtype}", volumes, root / dtype, made[0][0], time.perf_counter() - began)
    for bits in (8, 16):
        began = time.perf_counter()
        volumes = build(made.__getitem__, [(i,) for i in range(number)], root / f"{bits}", "benchmark", bits)
        written = time.perf_counter() - began
        yield from measure(f"shards {bits} bit", volumes, root / f"{bits}", made[0][0], written)


def main():
    args = arguments(__doc__, size=128, volumes=24)
    torch.set_num_threads(1)
    rows = []
    args.out.mkdir(parents=True, exist_ok=True)
    for size, number, dtypes in ((args.size, args.volumes, ("float32", "int16")), (256, 2, ("int16",))):
        with tempfile.TemporaryDirectory(dir=args.out) as root:  # on the disk, where /tmp may be memory
            rows += compare(Path(root), size, number, dtypes)
    write(args.out, "shards", rows)


if __name__ == "__main__":
    main()
