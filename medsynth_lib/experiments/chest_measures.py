"""How well thresholds measure chests at each stage of their preparation."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from medsynth_lib.evaluation.ct import measure


def measure_all(chests: Iterable[tuple[ArrayLike, ArrayLike]]) -> pd.DataFrame:
    """Measure several chests by thresholds.

    Args:
        chests: pairs of an image (x, y, z) in HU and its voxel size (3) in mm.

    Returns:
        A row a chest, with the columns of `evaluation.ct.measure`.
    """
    return pd.DataFrame([measure(np.asarray(hu), np.asarray(spacing)) for hu, spacing in chests])


def against_truth(tables: Mapping[str, pd.DataFrame], truth: pd.DataFrame) -> pd.DataFrame:
    """Compare measured quantities with the true ones.

    Args:
        tables: measured quantities by stage, a row a chest.
        truth: the same columns and chests.

    Returns:
        A row a quantity. Columns: ("measured / true", stage), the ratio of the means over chests, and
        ("rank correlation", stage), Spearman's.
    """
    ratios = pd.DataFrame({stage: table.mean() / truth.mean() for stage, table in tables.items()})
    ranks = pd.DataFrame({stage: table.corrwith(truth, method="spearman") for stage, table in tables.items()})
    return pd.concat({"measured / true": ratios, "rank correlation": ranks}, axis=1)
