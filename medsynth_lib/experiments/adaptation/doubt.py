"""Whether a synthetic T1 is wrong where its ensemble says so: measured where the target's T1 is known."""

from pathlib import Path

import numpy as np
import pandas as pd

from medsynth_lib.data.files.nifti import read_case, read_volume
from medsynth_lib.data.preparation.contract import restore
from medsynth_lib.data.preparation.pairs import PairedVolumes
from medsynth_lib.experiments.adaptation.own_volumes import UNITS


def errors_by_doubt(pairs: PairedVolumes, folder: Path, n: int) -> pd.DataFrame:
    """Compare the error of a synthetic T1 where it is doubtful and elsewhere.

    Args:
        pairs: target subjects with their T1.
        folder: what `adapt_folder` wrote of the same subjects.
        n: so many of the first subjects are compared.

    Returns:
        A row a subject: mean absolute error (normalised intensity) inside the brain, "doubtful" and "elsewhere", and the
        "ratio" of the two.
    """
    rows = {}
    for k, scan in enumerate(pairs.manifest.head(n).scans()):
        case = read_case(scan, pairs.contract.inputs, labels=False)
        # The truth goes to the scanner's grid, where the files are.
        truth, brain = (np.asarray(restore(pairs[k][name], case, pairs.contract))[0] for name in ("y", "mask"))
        t1, doubt = (read_output(folder, scan["subject"], what) for what in ("t1", "do_not_trust"))
        error, inside, doubtful = np.abs(t1 / UNITS - truth), brain > 0, doubt > 0
        parts = {"doubtful": error[inside & doubtful].mean(), "elsewhere": error[inside & ~doubtful].mean()}
        rows[scan["subject"]] = parts | {"ratio": parts["doubtful"] / parts["elsewhere"]}
    return pd.DataFrame(rows).T


def read_output(folder: Path, name: str, what: str) -> np.ndarray:
    """Read a file (x, y, z) that `adapt_folder` wrote.

    It is "t1" or "spread" in its units, or "do_not_trust", 0 or 1.

    Args:
        folder: of the files.
        name: a part of the volume's name, such as its subject.
        what: which of the three files.
    """
    return read_volume(next(folder.glob(f"*{name}*_{what}.nii.gz")), what == "do_not_trust")[0].numpy()
