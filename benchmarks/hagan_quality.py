"""Does HA-GAN train as well in bf16 as in fp32? Lesson 05's recipe, shorter, in batches of four, in either.

    python benchmarks/hagan_quality.py --steps 200 --volumes 112

Simulated tumour-free brains of lesson 05. The other seed says how large a difference chance alone makes. Written: what lesson
05 measures of 16 samples beside 16 held-out brains, and the losses of the way there.
"""

import json
import tempfile
import time
from dataclasses import replace
from types import SimpleNamespace

import torch
from common import arguments, write
from lightning_fabric import Fabric
from torch.utils.data import Subset

from medsynth_lib.evaluation.distribution import sliced_wasserstein
from medsynth_lib.evaluation.generation import generate, pairwise_ms_ssim
from medsynth_lib.experiments.hagan import lesson_cubes
from medsynth_lib.settings import load_settings
from medsynth_lib.training.hagan_build import build
from medsynth_lib.training.loop import fit


def run(precision, seed, settings, train, held_out, device):
    """Train once; return a row of numbers."""
    torch.manual_seed(seed)
    model, steps = build(settings), settings.steps
    fabric = Fabric(accelerator=device, devices=1, precision=precision)
    often = dict(validate_every=max(1, steps // 6), checkpoint_every=steps)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tune = Subset(held_out, range(4))
        how = dict(steps=steps, seed=seed, batch_size=settings.batch_size, fabric=fabric) | often
        history = fit(model, train, tune, folder, **how)
    seconds = time.perf_counter() - began
    codes = torch.randn(len(held_out), settings.latent, generator=torch.Generator().manual_seed(1))
    made = generate(model.networks, codes).float()
    real = torch.stack([sample["x"] for sample in held_out])
    return dict(
        precision=precision,
        seed=seed,
        steps=steps,
        seconds=round(seconds, 1),
        ms_ssim_held_out=round(float(pairwise_ms_ssim(real).mean()), 4),
        ms_ssim_of_samples=round(float(pairwise_ms_ssim(made).mean()), 4),
        sliced_wasserstein=round(sliced_wasserstein(made, real), 4),
        history=json.loads(history.round(4).to_json(orient="records")),
    )


def main():
    args = arguments(__doc__, steps=200, volumes=112)
    settings = load_settings("05", "lesson")
    cubes, _ = lesson_cubes(SimpleNamespace(settings=settings, data_dir=None, seed=0, notebook="05"), "t1")
    train, held_out = Subset(cubes["train"], range(args.volumes)), Subset(cubes["test"], range(16))
    live = dict(batch_size=settings.live_batch_size, average=settings.live_average)
    short = replace(settings.hagan, steps=args.steps, **live)
    precisions = ("32-true", 0), ("bf16-mixed", 0), ("32-true", 1)
    rows = [run(precision, seed, short, train, held_out, args.device) for precision, seed in precisions]
    write(args.out, f"hagan_quality-{args.device}", rows, args.device)


if __name__ == "__main__":
    main()
