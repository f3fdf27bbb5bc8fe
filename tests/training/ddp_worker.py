"""Run by test_pix2pix in two processes: four steps of DDP training on the CPU with each loss, weights of rank 0 to files."""

import sys
from dataclasses import replace

import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from test_pix2pix import SETTINGS, Volumes

from medsynth_lib.training import loop
from medsynth_lib.training.pix2pix import Pix2Pix


def main(folder):
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    torch.set_num_threads(1)
    for loss in ("l1", "gan"):
        torch.manual_seed(0)
        algorithm = Pix2Pix(replace(SETTINGS, loss=loss, spatial=0.0, intensity=0.0))
        sides = Volumes(6, 1, 24), Volumes(1, 2, 24)
        loop.fit(algorithm, *sides, f"{folder}/{loss}", steps=4, batch_size=1, validate_every=4, fabric=fabric)
        if fabric.global_rank == 0:
            weights = algorithm.networks["generator"].state_dict()
            save_file({k: v.contiguous() for k, v in weights.items()}, f"{folder}/{loss}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
