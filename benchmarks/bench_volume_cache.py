"""Volumes a second from .nii.gz (int16) and from the volume cache, in one thread, with the page cache warm or cold.

The volumes are simulated tumour-free brains (T1, site A) in [-1, 1], made at a quarter of the size and interpolated, with fresh
noise, so that making them takes no time. PSNR is that of the round trip, within the brain.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import arguments, write

from medsynth_lib.data.files.nifti import read_volume, write_volume
from medsynth_lib.data.preparation.volume_cache import StoredVolumes, build
from medsynth_lib.data.simulation.scanner import SITES, scan
from medsynth_lib.data.simulation.subject import make_subject

SECONDS = 1.0  # a measurement reads for about so long
FIELD_MM = 192  # field of view: the brain fills a fifth of it, as in cropped data
STORED = 1000  # int16 of the brightest voxel

Read = Callable[[int], torch.Tensor]


def make(seed: int, size: int) -> tuple[torch.Tensor, dict]:
    """Simulate a tumour-free brain (1, size, size, size) in [-1, 1], on the 1 / STORED grid of its int16 file."""
    coarse = size // 4
    subject = make_subject(seed, (coarse,) * 3, FIELD_MM / coarse, tumour=False)
    image = torch.as_tensor(scan(subject, SITES["A"], "t1")).float()[None, None]
    image = torch.nn.functional.interpolate(image, scale_factor=4, mode="trilinear")[0]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    image = torch.where(image > 0, (image / image.max() + 0.01 * noise).clip(0.01, 1), 0.0)
    return (image * STORED).round() / STORED * 2 - 1, dict(subject=f"{seed:05d}")


def drop_from_page_cache(folder: Path) -> bool:
    """Ask the system to forget the folder's files; True where it knows how to."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # what is not yet on the disk cannot be forgotten
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def per_second(read: Read, n: int, seconds: float) -> float:
    """Volumes a second over whole passes until the time is over (at least one pass)."""
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < seconds:
        for i in range(n):
            read(i)
        count += n
    return count / (time.perf_counter() - began)


def measure(name: str, reader: Callable[[], Read], folder: Path, original: torch.Tensor, n: int) -> dict:
    """One row: bytes, round trip and speed of one format."""
    error = (reader()(0) - original)[original > -1].square().mean().item()  # the background is exact anyway
    psnr = 10 * np.log10(4 / error) if error > 1e-13 else np.inf  # the range is 2
    cold = per_second(reader(), n, 0) if drop_from_page_cache(folder) else None  # with the check of every hash
    return dict(
        size=original.shape[1],
        format=name,
        volumes=n,
        mb_a_volume=round(sum(p.stat().st_size for p in folder.iterdir()) / n / 1e6, 2),
        psnr_db=round(float(psnr), 1) if np.isfinite(psnr) else "exact",
        cold_per_s=cold and round(cold, 1),
        warm_per_s=round(per_second(reader(), n, SECONDS), 1),
    )


def compare(root: Path, size: int, n: int) -> list[dict]:
    """Both formats at one size."""
    made = [make(seed, size) for seed in range(n)]
    for i, (volume, _) in enumerate(made):
        write_volume(root / "nifti" / f"{i}.nii.gz", ((volume[0] + 1) * STORED / 2).round(), np.eye(4))
    build(made.__getitem__, [(i,) for i in range(n)], root / "cache", "benchmark")

    def nifti() -> Read:
        return lambda i: read_volume(root / "nifti" / f"{i}.nii.gz").as_tensor() * (2 / STORED) - 1

    def cache() -> Read:
        volumes = StoredVolumes(root / "cache")
        return lambda i: volumes[i]["x"]

    return [
        measure("nii.gz int16", nifti, root / "nifti", made[0][0], n),
        measure("volume cache", cache, root / "cache", made[0][0], n),
    ]


def main() -> None:
    """Measure 128 (or --size) and 256 voxels an axis."""
    args = arguments(__doc__, size=128, volumes=24)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for size, n in ((args.size, args.volumes), (256, 2)):
        with tempfile.TemporaryDirectory(dir=args.out) as root:  # on the disk, where /tmp may be memory
            rows += compare(Path(root), size, n)
    write(args.out, "volume_cache", rows)


if __name__ == "__main__":
    main()
