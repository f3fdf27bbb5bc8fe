"""The one training loop: Lightning Fabric underneath, everything else on one screen.

What makes a run repeatable is that the random numbers of step k depend on the seed and k alone (`step_generator`,
`batch_indices`). So a resumed run needs the weights, the optimisers and k, and gives the same bits as one that never
stopped.
"""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import default_collate
from tqdm.auto import tqdm

from medsynth_lib.files import atomic
from medsynth_lib.processes import headless
from medsynth_lib.training.checkpoint import load_checkpoint, save_checkpoint


class NonFiniteLoss(ArithmeticError):
    """A loss became NaN or infinite; the message names it and the step. The last checkpoint is from before."""


def fit(
    algorithm,
    train,
    tune,
    folder,
    *,
    steps,
    until=None,
    seed=0,
    batch_size=1,
    validate_every=100,
    checkpoint_every=100,
    check_every=10,
    fabric=None,
):
    """Train until ``steps`` steps are done, resuming from ``folder`` where an earlier run stopped; return the history.

    Args:
        algorithm: has ``networks`` and ``optimisers`` (dictionaries; a group's "rate" multiplies the learning rate), ``reads``
            (the keys it uses of a sample),
            ``prepare(batch, generator)``, ``step(batch)`` and ``validate(batch)``, which return a dictionary of scalar
            tensors, and ``learning_rate(step, steps)``.
        train, tune: data sets of dictionaries; ``tune`` is only measured on.
        folder: receives ``checkpoint.safetensors`` and ``history.csv``.
        steps, until: length of the training, by which the learning rate falls; and where to stop this time (None: at its end).
        fabric: a lightning_fabric.Fabric for devices, precision and processes; None runs on the CPU as it is.

    Returns a DataFrame, one row per ``validate_every`` steps: mean training losses since the last row, tuning losses,
    seconds. Ctrl-C finishes the step, writes a checkpoint and raises KeyboardInterrupt. Raises NonFiniteLoss.
    """
    folder, end = Path(folder), until or steps
    rank, ranks, rows, start = setup(algorithm, fabric, folder)
    recent, unchecked, began = [], [], time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)
    bar = tqdm(range(start, end), initial=start, total=end, desc="training", disable=headless() or rank > 0)
    read = partial(read_batch, algorithm.reads, train, batch_size, seed, rank=rank, ranks=ranks)
    with interrupt_flag() as interrupted, closing(read_ahead(read, start, end)) as batches:
        for step, batch in zip(bar, batches, strict=True):
            unchecked.append(train_step(algorithm, batch, step, steps, seed, rank, fabric))
            done, stop = step + 1, interrupted()
            validate = done % validate_every == 0 or done == end
            save = done % checkpoint_every == 0 or done == end or stop
            if validate or save or done % check_every == 0:  # not at every step: a check waits for the device
                require_finite(unchecked, done)
                recent, unchecked = recent + unchecked, []
            if validate:
                tuned = validation_losses(algorithm, tune, fabric)
                require_finite([tuned], done)
                rows.append(
                    dict(step=done, **mean_losses(recent), **mean_losses([tuned]), seconds=time.perf_counter() - began)
                )
                recent = []
                bar.set_postfix({k: f"{v:.4f}" for k, v in rows[-1].items() if k.startswith("tune")})
            if save and rank == 0:
                write_state(folder, algorithm, done, rows)
            if stop:
                raise KeyboardInterrupt(
                    f"stopped after step {done} of {steps}; the checkpoint in {folder} goes on from there"
                )
        if interrupted():  # during the last validation: nothing is lost, but whoever pressed Ctrl-C wants to stop
            raise KeyboardInterrupt(f"stopped after the last step; the checkpoint in {folder} is complete")
    return pd.DataFrame(rows)


def read_batch(reads, train, batch_size, seed, step, rank, ranks):
    """The samples of one step's batch, collated; ``reads`` are the keys that are used."""
    samples = [train[i] for i in batch_indices(len(train), batch_size, seed, step, rank, ranks)]
    return default_collate([{k: sample[k] for k in reads} for sample in samples])


def read_ahead(read, start, end):
    """``read(step)`` for start <= step < end, each read by a second thread while the step before it is computed."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(read, start) if start < end else None
        for step in range(start, end):
            batch = coming.result()
            coming = pool.submit(read, step + 1) if step + 1 < end else None
            yield batch


def train_step(algorithm, batch, step, steps, seed, rank, fabric):
    """One step: seed, learning rate, update; returns the losses as tensors."""
    torch.manual_seed(step_seed(seed, step, rank))
    batch = algorithm.prepare(to_device(batch, fabric), step_generator(seed, step, rank))  # a CPU generator everywhere
    for optimiser in algorithm.optimisers.values():
        for group in optimiser.param_groups:
            group["lr"] = algorithm.learning_rate(step, steps) * group.get("rate", 1.0)
    return algorithm.step(batch)


def linear_decay(recipe, step, steps):
    """Learning rate: constant, then linear towards zero, but never below the final rate; shares of the training in the recipe.

    The synthesis network's published schedule, 50 epochs and 70 of decay to zero, is constant_until 50/120, decay_until 1,
    final rate 0.
    """
    decay = (recipe["decay_until"] - step / steps) / (recipe["decay_until"] - recipe["constant_until"])
    return max(recipe["learning_rate"] * min(1.0, decay), recipe["final_learning_rate"])


class Algorithm:
    """What algorithms share unless they say otherwise: a rate by `linear_decay` of their ``recipe``, batches as they are."""

    def learning_rate(self, step, steps):
        return linear_decay(self.recipe, step, steps)

    def prepare(self, batch, generator):
        return batch

    def backward(self, loss):
        loss.backward()  # `fit` puts Fabric's in its place


def setup(algorithm, fabric, folder):
    """Hand networks and optimisers to Fabric and load the last checkpoint; return rank, processes, history and step."""
    if fabric is not None:
        for name, network in algorithm.networks.items():
            if name in algorithm.optimisers:
                algorithm.networks[name], algorithm.optimisers[name] = fabric.setup(network, algorithm.optimisers[name])
            else:  # a running mean of another network's weights
                fabric.to_device(network)
        algorithm.backward = fabric.backward
    rows, start, path = [], 0, folder / "checkpoint.safetensors"
    if path.exists():
        meta = load_checkpoint(path, algorithm.networks, algorithm.optimisers)
        rows, start = meta["history"], meta["step"]
    return (fabric.global_rank, fabric.world_size, rows, start) if fabric else (0, 1, rows, start)


def write_state(folder, algorithm, step, rows):
    """The history as a table for people, then the checkpoint; losses since the last history row are not kept."""
    if rows:
        with atomic(folder / "history.csv") as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)
    meta = dict(step=step, history=rows)
    save_checkpoint(folder / "checkpoint.safetensors", algorithm.networks, algorithm.optimisers, meta)


def step_seed(seed, step, rank=0):
    """A 63-bit number that differs for every (seed, step, rank)."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def step_generator(seed, step, rank=0):
    """The random generator of one step: nothing it draws depends on earlier steps."""
    return torch.Generator().manual_seed(step_seed(seed, step, rank))


def batch_indices(n, batch_size, seed, step, rank=0, ranks=1):
    """Indices of one step's batch: every epoch is a fresh permutation, shared out among the processes."""
    positions = np.arange(batch_size) + (step * ranks + rank) * batch_size
    epochs = {e: np.random.default_rng([seed, int(e)]).permutation(n) for e in np.unique(positions // n)}
    return [int(epochs[p // n][p % n]) for p in positions]


def to_device(batch, fabric):
    return fabric.to_device(batch) if fabric else batch


def mean_losses(recent):
    """Mean of each loss over those of the collected steps that have it."""
    names = dict.fromkeys(name for each in recent for name in each)
    return {k: float(torch.stack([r[k] for r in recent if k in r]).mean()) for k in names}


def require_finite(losses, step):
    """Raise NonFiniteLoss naming the loss and the earliest step; ``losses`` are those of the steps up to ``step``."""
    if torch.stack([value for each in losses for value in each.values()]).isfinite().all():
        return
    for i, each in enumerate(losses):
        for name, value in each.items():
            if not torch.isfinite(value):
                raise NonFiniteLoss(
                    f"loss {name!r} is {float(value)} at step {step - len(losses) + i + 1}; lower the learning rate or look "
                    "at that step's batch. The last checkpoint is from before it."
                )


@torch.no_grad()
def validation_losses(algorithm, tune, fabric):
    """Mean validation losses over the tuning set as tensors, each name prefixed with 'tune_'."""
    for network in algorithm.networks.values():
        network.eval()
    batches = (default_collate([{k: tune[i][k] for k in algorithm.reads}]) for i in range(len(tune)))
    losses = [algorithm.validate(to_device(batch, fabric)) for batch in batches]
    for network in algorithm.networks.values():
        network.train()
    return {f"tune_{k}": torch.stack([each[k] for each in losses]).mean() for k in losses[0]}


@contextmanager
def interrupt_flag():
    """Turn the first Ctrl-C into a flag, so that a step is never left half done; the second interrupts at once."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield lambda: False
        return
    caught = []

    def handler(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(caught)
    finally:
        signal.signal(signal.SIGINT, before)
