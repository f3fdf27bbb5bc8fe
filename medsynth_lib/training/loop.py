"""The one training loop: Lightning Fabric underneath, everything else on one screen.

What makes a training repeatable: the random numbers of step k depend on the seed and on k alone (`step_generator`,
`batch_indices`). A resumed training therefore needs the weights, the optimisers and k. It gives the same bits as one that
never stopped.
"""

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import default_collate
from tqdm.auto import tqdm

from medsynth_lib.files import atomic
from medsynth_lib.processes import headless
from medsynth_lib.settings import TrainingSettings
from medsynth_lib.training.checkpoint import load_checkpoint, save_checkpoint

CHECK_EVERY = 10  # steps between two looks at whether losses are finite; a look waits for the device

Batch = dict[str, torch.Tensor]
Losses = dict[str, torch.Tensor]


class NonFiniteLoss(ArithmeticError):
    """A loss became NaN or infinite; the message names it and the step. The last checkpoint is from before."""


@dataclass(frozen=True)
class Run:
    """Where a training runs. `fit` makes it from a Fabric; the default is this process on the CPU."""

    device: torch.device = torch.device("cpu")
    rank: int = 0  # of this process
    processes: int = 1  # that train together
    precision: str = "32-true"  # Fabric's name of it
    backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward  # Fabric's also shares gradients among processes


class Algorithm:
    """What `fit` asks of an algorithm; a subclass gives the networks, a step and a validation.

    Attributes:
        settings: of the training, among them the learning rate and its schedule.
        networks: by name; those without an optimiser are only stored and moved.
        optimisers: by their network's name. A group's "rate" multiplies the learning rate.
        reads: keys of a sample that the algorithm uses.
    """

    settings: TrainingSettings
    networks: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]
    reads: tuple[str, ...]

    def begin_step(self, step: int, steps: int) -> None:
        """Do what is due before a step (from 0), such as entering a phase; also after a resume."""

    def learning_rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step."""
        return linear_decay(self.settings, step, steps)

    def prepare(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch that `step` gets, such as an augmented one; the generator is a CPU's."""
        return batch

    def step(self, batch: Batch, run: Run = Run()) -> Losses:
        """Take one optimisation step on a batch; return scalar losses, detached."""
        raise NotImplementedError

    def validate(self, batch: Batch) -> Losses:
        """Return scalar losses of a tuning batch, in evaluation mode and without gradients."""
        raise NotImplementedError


def fit(
    algorithm: Algorithm, train: Sequence, tune: Sequence, folder: Path | str, *,
    steps: int, until: int | None = None, seed: int = 0, batch_size: int = 1,
    validate_every: int = 100, checkpoint_every: int = 100, fabric: Fabric | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Train to the end, resuming from ``folder`` where an earlier training stopped.

    Args:
        algorithm: networks, optimisers, and what a step does.
        train, tune: data sets of dictionaries; ``tune`` is only measured on.
        folder: receives checkpoint.safetensors and history.csv.
        steps, until: length of the training, by which the learning rate falls; and where to stop this time.
        validate_every, checkpoint_every: steps between two rows of the history, and between two checkpoints.
        fabric: devices, precision and processes; None is this process on the CPU.

    Returns: the history, a row per ``validate_every`` steps: mean losses since the last row, tuning losses, seconds.
    Raises: NonFiniteLoss; KeyboardInterrupt after Ctrl-C, when the step is finished and a checkpoint written.
    """
    folder, end, run = Path(folder), until or steps, set_up(algorithm, fabric)
    history, start = resume(algorithm, folder)
    done = start
    bar = tqdm(range(start, end), initial=start, total=end, desc="training", disable=headless() or run.rank > 0)
    read = partial(read_batch, algorithm.reads, train, batch_size, seed, rank=run.rank, ranks=run.processes)
    with interrupt_flag() as interrupted, closing(read_ahead(read, start, end)) as batches:
        for step, batch in zip(bar, batches, strict=True):
            history.add(train_step(algorithm, batch, step, steps, seed, run))
            done, stop = step + 1, interrupted()
            validate = done % validate_every == 0 or done == end
            save = done % checkpoint_every == 0 or done == end or stop
            if validate or save or done % CHECK_EVERY == 0:
                history.check(done)
            if validate:
                history.close_row(done, validation_losses(algorithm, tune, run))
                bar.set_postfix({k: f"{v:.4f}" for k, v in history.rows[-1].items() if k.startswith("tune")})
            if save and run.rank == 0:
                write_state(folder, algorithm, done, history.rows)
            if stop:
                break
        if interrupted():
            raise KeyboardInterrupt(f"stopped after step {done} of {steps}; {folder} has the checkpoint to go on from")
    return pd.DataFrame(history.rows)


class History:
    """Losses of a training: its rows so far, and the steps since the last row."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows, self.checked, self.unchecked = rows, [], []
        self.began = time.perf_counter() - (rows[-1]["seconds"] if rows else 0.0)

    def add(self, losses: Losses) -> None:
        """Take the losses of one more step."""
        self.unchecked.append(losses)

    def check(self, done: int) -> None:
        """Raise NonFiniteLoss unless all losses up to step ``done`` are finite."""
        require_finite(self.unchecked, done)
        self.checked, self.unchecked = self.checked + self.unchecked, []

    def close_row(self, done: int, tuned: Losses) -> None:
        """Add the row of step ``done``: mean losses since the row before, tuning losses, seconds."""
        require_finite([tuned], done)
        seconds = time.perf_counter() - self.began
        self.rows.append(dict(step=done, **mean_losses(self.checked), **mean_losses([tuned]), seconds=seconds))
        self.checked = []


def set_up(algorithm: Algorithm, fabric: Fabric | None) -> Run:
    """Hand networks and optimisers to Fabric; return where the training runs."""
    if fabric is None:
        return Run()
    for name, network in algorithm.networks.items():
        if name in algorithm.optimisers:
            algorithm.networks[name], algorithm.optimisers[name] = fabric.setup(network, algorithm.optimisers[name])
        else:  # a running mean of another network's weights
            fabric.to_device(network)
    precision = str(fabric.strategy.precision.precision)
    return Run(fabric.device, fabric.global_rank, fabric.world_size, precision, fabric.backward)


def resume(algorithm: Algorithm, folder: Path) -> tuple[History, int]:
    """Load the last checkpoint of a folder, if any; return the history and the steps done."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return History([]), 0
    meta = load_checkpoint(path, algorithm.networks, algorithm.optimisers)
    return History(meta["history"]), meta["step"]


def train_step(algorithm: Algorithm, batch: Batch, step: int, steps: int, seed: int, run: Run) -> Losses:
    """Take one step: random numbers, batch, learning rate, update; return the losses."""
    torch.manual_seed(step_seed(seed, step, run.rank))
    batch = algorithm.prepare(to_device(batch, run), step_generator(seed, step, run.rank))
    algorithm.begin_step(step, steps)
    for optimiser in algorithm.optimisers.values():
        for group in optimiser.param_groups:
            group["lr"] = algorithm.learning_rate(step, steps) * group.get("rate", 1.0)
    return algorithm.step(batch, run)


@torch.no_grad()
def validation_losses(algorithm: Algorithm, tune: Sequence, run: Run) -> Losses:
    """Return mean validation losses over the tuning set, each name prefixed with 'tune_'."""
    for network in algorithm.networks.values():
        network.eval()
    batches = (default_collate([{k: tune[i][k] for k in algorithm.reads}]) for i in range(len(tune)))
    losses = [algorithm.validate(to_device(batch, run)) for batch in batches]
    for network in algorithm.networks.values():
        network.train()
    return {f"tune_{k}": torch.stack([each[k] for each in losses]).mean() for k in losses[0]}


def write_state(folder: Path, algorithm: Algorithm, step: int, rows: list[dict]) -> None:
    """Write the history as a table, then the checkpoint, without losses since the last row."""
    if rows:
        with atomic(folder / "history.csv") as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)
    meta = dict(step=step, history=rows)
    save_checkpoint(folder / "checkpoint.safetensors", algorithm.networks, algorithm.optimisers, meta)


# -- what a step needs -----------------------------------------------------------------------------------------------------


def linear_decay(settings: TrainingSettings, step: int, steps: int) -> float:
    """Return the learning rate of a step: constant, then linear, never below the final rate.

    Public code of pix2pix: 50 epochs constant, 70 of decay: constant_until 50/120, decay_until 1, final rate 0.
    """
    decay = (settings.decay_until - step / steps) / (settings.decay_until - settings.constant_until)
    return max(settings.learning_rate * min(1.0, decay), settings.final_learning_rate)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return a 63-bit number that differs for every (seed, step, rank)."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Make the random generator of one step; nothing it draws depends on earlier steps."""
    return torch.Generator().manual_seed(step_seed(seed, step, rank))


def batch_indices(n: int, batch_size: int, seed: int, step: int, rank: int = 0, ranks: int = 1) -> list[int]:
    """Return the indices of one step's batch.

    Every epoch is a new permutation of the n samples, shared out among the processes.
    """
    positions = np.arange(batch_size) + (step * ranks + rank) * batch_size
    epochs = {e: np.random.default_rng([seed, int(e)]).permutation(n) for e in np.unique(positions // n)}
    return [int(epochs[p // n][p % n]) for p in positions]


def read_batch(
    reads: Sequence[str], train: Sequence, batch_size: int, seed: int, step: int, rank: int, ranks: int
) -> Batch:
    """Read and collate the samples of one step's batch; ``reads`` are the keys that are used."""
    samples = [train[i] for i in batch_indices(len(train), batch_size, seed, step, rank, ranks)]
    return default_collate([{k: sample[k] for k in reads} for sample in samples])


def read_ahead(read: Callable[[int], Any], start: int, end: int) -> Generator[Any, None, None]:
    """Yield read(step) for start <= step < end, each read by a second thread one step ahead."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(read, start) if start < end else None
        for step in range(start, end):
            batch = coming.result()
            coming = pool.submit(read, step + 1) if step + 1 < end else None
            yield batch


def to_device(batch: Batch, run: Run) -> Batch:
    """Move a batch to where the training runs."""
    return {key: value.to(run.device) for key, value in batch.items()}


def mean_losses(recent: list[Losses]) -> dict[str, float]:
    """Return the mean of each loss over those of the steps that have it."""
    names = dict.fromkeys(name for each in recent for name in each)
    return {k: float(torch.stack([r[k] for r in recent if k in r]).mean()) for k in names}


def require_finite(losses: list[Losses], step: int) -> None:
    """Raise NonFiniteLoss for the first NaN or infinity in the losses of the steps up to this."""
    if torch.stack([value for each in losses for value in each.values()]).isfinite().all():
        return
    for i, each in enumerate(losses):
        for name, value in each.items():
            if not torch.isfinite(value):
                raise NonFiniteLoss(
                    f"loss {name!r} is {float(value)} at step {step - len(losses) + i + 1}; lower the learning rate or look "
                    "at that step's batch. The last checkpoint is from before it."
                )


@contextmanager
def interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, so that a step is finished; the second interrupts."""
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
