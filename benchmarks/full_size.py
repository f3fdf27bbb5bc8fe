"""The main job at the real size: a folder of 240 x 240 x 155 BraTS-like subjects, from NIfTI to NIfTI.

    DATA_DIR=/path/to/subjects python benchmarks/full_size.py

Preparation to 192 x 192 x 144 at 1 mm, some training steps of a narrow network on the first site, whole-volume inference on
the second, and the synthetic T1 as NIfTI in the original grid. Without DATA_DIR, six simulated subjects of that size are
written first. Prints seconds and peak GiB of every stage.
"""

import os
import time
from pathlib import Path

import numpy as np
from common import arguments, peak_gib, write

from medsynth_lib.data.files.layouts import open_dataset
from medsynth_lib.data.files.nifti import read_case, read_volume, write_volume
from medsynth_lib.data.files.selection import site_pair
from medsynth_lib.data.files.splits import with_split
from medsynth_lib.data.preparation.contract import Contract, restore
from medsynth_lib.data.simulation.dataset import simulated_dataset
from medsynth_lib.evaluation.image import psnr
from medsynth_lib.evaluation.synthesis import predict
from medsynth_lib.experiments.lesson_data import volumes
from medsynth_lib.settings import Pix2PixSettings
from medsynth_lib.training.loop import fit
from medsynth_lib.training.pix2pix import Pix2Pix


class Stages:
    """Collect seconds and the peak memory so far, stage by stage."""

    def __init__(self):
        self.rows, self.began = [], time.perf_counter()

    def done(self, name):
        now = time.perf_counter()
        self.rows.append(dict(stage=name, seconds=round(now - self.began, 1), peak_gib=round(peak_gib(), 2)))
        print(self.rows[-1], flush=True)
        self.began = now


def main():
    args = arguments(__doc__, steps=6, width=16)
    stages = Stages()
    if os.environ.get("DATA_DIR"):
        manifest = open_dataset(os.environ["DATA_DIR"])
    else:
        manifest = simulated_dataset(dict(train=1, tune=1, test=1), (240, 240, 155), 1.0, jobs=2)
        stages.done("simulate 3 subjects at 2 sites")
    source, target = site_pair(manifest)
    manifest = with_split(manifest.select(site=(source, target)), seed=0)
    contract = Contract(spacing=(1.0, 1.0, 1.0), size=(192, 192, 144))
    train, tune = (volumes(manifest, contract, source, split, limit=2) for split in ("train", "tune"))
    test = volumes(manifest, contract, target, "test", limit=1)
    for data in (train, tune, test):
        data.preload(1)
    stages.done(f"prepare {len(train) + len(tune) + len(test)} scans")
    constant_rate = dict(learning_rate=0.005, constant_until=1.0, decay_until=2.0)
    algorithm = Pix2Pix(Pix2PixSettings(width=args.width, loss="l1", **constant_rate))
    folder = args.out / "full_size_training"
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)  # a benchmark starts anew
    history = fit(algorithm, train, tune, folder, steps=args.steps, validate_every=args.steps)
    stages.done(f"{args.steps} training steps, width {args.width}, and one validation")
    synthetic = predict(algorithm.networks["generator"], test[0])
    stages.done("whole-volume inference")
    scan = test.manifest.scans()[0]
    case = read_case(scan, contract.modalities)
    back = restore(synthetic, case, contract)
    path = Path(args.out) / f"{scan['subject']}_{target}_synthetic_t1.nii.gz"
    write_volume(path, np.asarray(back[0]) * 1000, case["flair"].affine)
    assert read_volume(path).shape == case["flair"].shape
    stages.done(f"write {tuple(case['flair'].shape[1:])} NIfTI in the original grid")
    quality = psnr(synthetic, test[0]["y"], test[0]["mask"])
    print(
        f"L1 after {args.steps} steps {history['l1'].iloc[-1]:.3f}, PSNR {quality:.1f} dB: it runs, it is not yet good"
    )
    write(args.out, "full_size", stages.rows)


if __name__ == "__main__":
    main()
