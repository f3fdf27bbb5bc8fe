"""Seconds on one core for a brain and its six images (T1, T2, FLAIR at sites A and B), for a warm atlas, and for a chest CT."""

import time

import torch
from common import arguments, median_seconds, write

from medsynth_lib.data.simulation.atlas import atlas
from medsynth_lib.data.simulation.scanner import SITES, scan
from medsynth_lib.data.simulation.subject import make_subject
from medsynth_lib.data.simulation.thorax import make_thorax

GRIDS = {(64, 64, 64): 3.0, (96, 96, 96): 2.0, (128, 128, 128): 1.5, (192, 192, 144): 1.0}


def six_images(subject):
    for site in "AB":
        for contrast in ("t1", "t2", "flair"):
            scan(subject, SITES[site], contrast)


def main():
    args = arguments(__doc__)
    torch.set_num_threads(1)
    rows = []
    for shape, spacing in GRIDS.items():
        atlas(spacing)
        atlas.cache_clear()
        began = time.perf_counter()
        atlas(spacing)
        warm = time.perf_counter() - began
        subject = make_subject(1, shape, spacing)
        alone = median_seconds(lambda shape=shape, spacing=spacing: make_subject(1, shape, spacing))
        images = median_seconds(lambda subject=subject: six_images(subject))
        rows.append(
            dict(
                grid="x".join(map(str, shape)),
                mm=spacing,
                warm_atlas_s=round(warm, 3),
                subject_s=round(alone, 3),
                six_images_s=round(images, 3),
                total_s=round(alone + images, 3),
            )
        )
    for n in (64, 96, 128):
        seconds = median_seconds(lambda n=n: make_thorax(1, (n,) * 3))
        rows.append(dict(grid=f"{n}x{n}x{n}", chest_ct_s=round(seconds, 3)))
    write(args.out, "simulator", rows)


if __name__ == "__main__":
    main()
