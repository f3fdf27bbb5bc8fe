"""Seconds and peak memory of one pix2pix training step, L1 and adversarial, for several sizes and widths."""

import torch
from common import arguments, median_seconds, peak_gib, write

from medsynth_lib.settings import Pix2PixSettings
from medsynth_lib.training.pix2pix import Pix2Pix

CASES = {
    "cpu": [((40, 40, 30), 16), ((80, 80, 60), 32), ((96, 96, 72), 32)],
    "cuda": [((80, 80, 60), 32), ((128, 128, 96), 64), ((192, 192, 144), 64)],
}


def main():
    args = arguments(__doc__)
    rows = []
    for size, width in CASES[args.device]:
        for loss in ("l1", "gan"):
            algorithm = Pix2Pix(Pix2PixSettings(width=width, loss=loss))
            for network in algorithm.networks.values():
                network.to(args.device)
            batch = dict(x=torch.rand(1, 2, *size, device=args.device), y=torch.rand(1, 1, *size, device=args.device))

            def step(algorithm=algorithm, batch=batch):
                losses = algorithm.step(batch)
                return float(losses["l1"])  # waits for the device

            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = median_seconds(step)
            peak = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else peak_gib()
            rows.append(
                dict(
                    size="x".join(map(str, size)),
                    width=width,
                    loss=loss,
                    seconds=round(seconds, 3),
                    peak_gib_so_far=round(peak, 2),
                )
            )
    write(args.out, f"pix2pix-{args.device}", rows, args.device)


if __name__ == "__main__":
    main()
