"""What a GPU says of training steps that lesson 08 plans: GiB allocated, reserved by the allocator, and in use on the card.

    python benchmarks/memory_gpu.py

HA-GAN, plain and lean, at every size, the paper's multipliers, both precisions; the four baselines; a SegResNet of MONAI. What
does not fit is written as such. It needs a GPU; `medsynth memory` plans without one.
"""

from functools import partial

import torch
from common import arguments, write
from monai.networks.nets import SegResNet

from medsynth_lib.profiling.ledger import measured
from medsynth_lib.profiling.networks import BASELINES, baseline, hagan
from medsynth_lib.profiling.planner import Setting, training_in
from medsynth_lib.profiling.report import GIB


def segresnet():
    return SegResNet(spatial_dims=3, in_channels=1, out_channels=1, init_filters=16)


def cases():
    """(name, builder, setting) of every row."""
    lean = partial(hagan, lean=True)
    for size in (32, 64, 128, 256):
        yield "HA-GAN", hagan, Setting(size, 2)
        yield "HA-GAN, lean", lean, Setting(size, 2)
    for share in (1 / 4, 1 / 2):
        yield "HA-GAN", hagan, Setting(256, 2, sub_volume=share)
    for name, build in (("HA-GAN", hagan), ("HA-GAN, lean", lean)):
        yield name, build, Setting(256, 2, precision="bf16 autocast")
        yield name, build, Setting(512, 1)
    for name in BASELINES:
        for size in (64, 128, 256):
            yield name, partial(baseline, name), Setting(size, 2)
    for precision in ("fp32", "bf16 autocast"):
        yield "SegResNet", segresnet, Setting(128, 2, precision=precision)


def main():
    args = arguments(__doc__)
    rows = []
    for name, build, setting in cases():
        row = dict(
            network=name,
            size=setting.size,
            batch=setting.batch,
            sub_volume=setting.sub_volume,
            precision=setting.precision,
        )
        try:
            found = measured(partial(training_in, setting, build))
            rows.append(row | {f"{key}_gib": round(value / GIB, 3) for key, value in found.items()})
        except torch.OutOfMemoryError:
            rows.append(row | dict(note="does not fit"))
        print(rows[-1], flush=True)
    write(args.out, "memory-cuda", rows, "cuda")


if __name__ == "__main__":
    main()
