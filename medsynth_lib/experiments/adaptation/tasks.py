"""What Fig. 1 compares: features of a classifier that reads the same inputs as the synthesiser."""

import numpy as np

from medsynth_lib.experiments.adaptation.direction import Sample

BINS = 16  # of one histogram


def input_histograms(sample: Sample) -> np.ndarray:
    """Describe a sample by the histograms of its inputs inside the brain.

    Args:
        sample: "x" (c, x, y, z) in [0, 1] and "mask" (1, x, y, z).

    Returns:
        Densities (c * BINS).
    """
    brain = sample["mask"][0]
    return np.concatenate([np.histogram(channel[brain], BINS, (0, 1), density=True)[0] for channel in sample["x"]])
