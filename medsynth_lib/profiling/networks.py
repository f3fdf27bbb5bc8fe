"""Trainings to be planned: HA-GAN, its baselines, and a step of any network or any algorithm."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from medsynth_lib.models.hagan_lean import fuse_up_sampling, store_less
from medsynth_lib.profiling.fake import tensors
from medsynth_lib.profiling.ledger import Training
from medsynth_lib.profiling.phases import phase, updates
from medsynth_lib.settings import PublicHAGANSettings, settings_class
from medsynth_lib.training.baselines import ALGORITHMS
from medsynth_lib.training.hagan_build import build
from medsynth_lib.training.hagan_lean import SecondMomentAdam, recompute
from medsynth_lib.training.loop import Algorithm, Run

BASELINES = ("WGAN", "VAE-GAN", "alpha-GAN", "Progressive GAN")
STEPS = 1000  # of the training whose first and last step are planned


def hagan(
    size: int = 256, sub_volume: float = 1 / 8, latent: int = 1024, c: int = 32, lean: bool = False,
    levers: Sequence[str] = (), checkpoint: bool = False,
) -> Algorithm:  # fmt: skip
    """Build HA-GAN with the public code's losses and a running mean of the generator.

    Args:
        size, latent, c: as in `models.hagan.networks`.
        sub_volume: share of the slices that D^H sees.
        lean: all of the lean form.
        levers: parts of the lean form: any of "up-sampling", "activations", "optimiser state".
        checkpoint: compute G^L and G^H again in the backward pass.
    """
    algorithm = build(PublicHAGANSettings(size=size, latent=latent, c=c, fraction=sub_volume, average=0.999, lean=lean))
    for name in ("G^L", "G^H") if checkpoint else ():
        recompute(algorithm.networks[name])
    for name in algorithm.optimisers:
        network = algorithm.networks[name]
        if "up-sampling" in levers:
            fuse_up_sampling(network)
        if "activations" in levers:
            store_less(network)
        if "optimiser state" in levers:
            algorithm.optimisers[name] = SecondMomentAdam(list(network.parameters()), 1e-4)
    return algorithm


def baseline(
    name: str, size: int = 128, latent: int | None = None, width: int | None = None, widest: int | None = None,
    fused: bool = False,
) -> Algorithm:  # fmt: skip
    """Build one of `BASELINES`.

    Args:
        size: voxels along each axis.
        latent, width, widest: as in `models.baselines`; None is the value of section IV or, where it is silent, ours.
        fused: up-sampling and convolution of the generator in one, as in HA-GAN's lean form.
    """
    given = {k: v for k, v in dict(latent=latent, width=width, widest=widest).items() if v is not None}
    kind: Any = settings_class(name)
    algorithm = ALGORITHMS[name](kind(size=size, **given))
    if fused:
        fuse_up_sampling(algorithm.networks["G"])
    return algorithm


def supervised(
    network: nn.Module, batch: int, size: int, share: float = 1.0, channels: int = 1,
    loss: Callable = F.l1_loss, optimiser: Callable = torch.optim.Adam,
) -> Training:  # fmt: skip
    """Train a network from volumes to a target of its output's shape.

    Args:
        network: takes (batch, channels, share * size, size, size).
        batch: volumes in a batch.
        size: voxels along each axis.
        share: of the slices along the first axis.
        loss: of output and target.
        optimiser: made from the parameters.
    """
    inputs = {"x": torch.rand(batch, channels, int(size * share), size, size)}
    adam = optimiser(network.parameters())

    def step():
        adam.zero_grad()
        with phase("forward"):
            out = tensors(network(inputs["x"]))[0]  # deep supervision: the first is the full resolution
            if "y" not in inputs:
                inputs["y"] = torch.rand_like(out)
            value = loss(out, inputs["y"])
        with phase("backward"):
            value.backward()
        del out, value
        with phase("optimiser"):
            adam.step()

    return Training(step, {"": network}, {"": adam}, inputs)


def unsupervised(
    algorithm: Algorithm, batch: int, size: int | None = None, sample: Mapping[str, Any] | None = None
) -> Training:
    """Train an algorithm as `fit` does; each of its updates is a phase of the Report.

    Where the first and the last step of a training update different networks, a step here is one of each.

    Args:
        batch: samples in a batch.
        size: voxels along each axis of "x" (1, size, size, size), where there is no sample.
        sample: one of the data set, whose shapes count.
    """
    if sample is None:
        sample = {"x": torch.zeros(1, size, size, size), "label": torch.zeros((), dtype=torch.long)}
    sample = {key: torch.as_tensor(sample[key]) for key in algorithm.reads}
    inputs = {key: torch.zeros(batch, *value.shape, dtype=value.dtype) for key, value in sample.items()}
    run = Run(next(iter(inputs.values())).device)
    changes = type(algorithm).begin_step is not Algorithm.begin_step
    planned = [0, STEPS - 1] if changes else [STEPS - 1]

    def step():
        learned = {}
        for k in planned:
            algorithm.begin_step(k, STEPS)
            with updates(algorithm.optimisers) as learned[k]:
                algorithm.step(inputs, run)
        if set(learned.get(0, ())) <= set(learned[STEPS - 1]):
            planned[:] = [STEPS - 1]

    return Training(step, algorithm.networks, algorithm.optimisers, inputs)
