"""A subject scanned and scaled: what lessons compare when they ask what another scanner changes."""

import numpy as np
import torch

from medsynth_lib.data.preparation.contract import normalise
from medsynth_lib.data.simulation.scanner import Site, scan
from medsynth_lib.data.simulation.subject import Subject


def normalised_scan(subject: Subject, site: Site, contrast: str) -> np.ndarray:
    """Scan a subject and scale the image by percentiles, so that gain plays no part.

    Args:
        subject: a simulated brain.
        site: the scanner.
        contrast: "flair", "t1", "t1ce" or "t2".

    Returns:
        (x, y, z) in [0, 1].
    """
    image = torch.from_numpy(scan(subject, site, contrast))
    return normalise(image[None], "percentile")[0].numpy()
