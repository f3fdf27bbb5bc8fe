"""Short trainings whose weights nobody needs later: a lesson compares their losses, or looks at their first samples."""

import tempfile
from collections.abc import Sequence

import pandas as pd

from medsynth_lib.experiments.computer import default_fabric
from medsynth_lib.training.loop import Algorithm, fit


def train_briefly(
    algorithm: Algorithm, train: Sequence, tune: Sequence, steps: int, batch_size: int = 1, seed: int = 0
) -> pd.Series:
    """Train an algorithm for a few steps, in place, without a checkpoint that outlives them.

    Args:
        algorithm: networks, optimisers, and what a step does.
        train: training samples.
        tune: samples that are measured after the last step.
        steps: of the training.
        batch_size: samples a step.
        seed: of batches and random numbers.

    Returns:
        The one row of its history: mean losses, tuning losses, seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        history = fit(
            algorithm, train, tune, folder, steps=steps, seed=seed, batch_size=batch_size, validate_every=steps,
            fabric=default_fabric(),
        )  # fmt: skip
    return history.iloc[-1]
