"""Figures of lesson 01: subjects of two sites, normalised histograms, thresholds against the truth."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from medsynth_lib.data.files.manifest import Scan
from medsynth_lib.data.files.nifti import read_volume
from medsynth_lib.data.preparation.contract import normalise
from medsynth_lib.display.figures import slice_grid, slice_of
from medsynth_lib.display.volume import canonical

QUANTITIES = {
    "lung_ml": "lung (ml)",
    "emphysema_percent": "emphysema (% of the lung)",
    "fat_ml": "fat (ml)",
    "bone_ml": "bone (ml)",
}
SITE_COLOURS = ("tab:green", "tab:blue")


def site_montage(scans: Mapping[str, Sequence[Scan]], contrasts: Sequence[str], title: str) -> Figure:
    """Draw an axial slice above the middle of each scan, every picture on its own scale.

    Args:
        scans: of a manifest, by site.
        contrasts: a row of the grid for each of them and each site.
        title: text above the figure.
    """
    rows, names = [], []
    for contrast in contrasts:
        for site, group in scans.items():
            volumes = [canonical(read_volume(scan.path(contrast)))[0] for scan in group]
            rows.append([slice_of(v, index=v.shape[-1] // 2 + 3) for v in volumes])
            names.append(f"{contrast.upper()}\n{site}")
    return slice_grid(rows, names, window="own", size=1.6, title=title)


def normalisation_histograms(
    volumes: Mapping[str, Sequence[torch.Tensor]], methods: Sequence[str], landmarks: np.ndarray
) -> Figure:
    """Draw the histograms of two sites' scans after each normalisation, one line a scan.

    Args:
        volumes: scans (1, x, y, z) by site, 0 outside the brain; the first site is green, the second blue.
        methods: names that `contract.normalise` knows.
        landmarks: of Nyul's method, learned on the source.
    """
    figure, axes = plt.subplots(1, len(methods), figsize=(13, 2.8), layout="constrained")
    for axis, method in zip(axes, methods, strict=True):
        for scans, colour in zip(volumes.values(), SITE_COLOURS, strict=True):
            for scan in scans:
                values = normalise(scan, method, landmarks=landmarks)[scan > 0]
                axis.hist(values.numpy(), bins=60, histtype="step", color=colour, density=True, alpha=0.7)
        axis.set(title=method, yticks=[], xlabel="scaled intensity")
    return figure


def measured_against_truth(
    tables: Mapping[str, pd.DataFrame], truth: pd.DataFrame, truth_name: str, title: str
) -> Figure:
    """Draw measured against true quantities, a panel a quantity; a grey line is equality.

    Args:
        tables: measured quantities by stage, a row a chest; circles for the first stage, crosses for the second.
        truth: the same columns and chests.
        truth_name: text of the horizontal axes.
        title: text above the figure.
    """
    figure, axes = plt.subplots(1, truth.shape[1], figsize=(13, 3.2), layout="constrained")
    for axis, name in zip(axes, truth, strict=True):
        for (stage, table), marker in zip(tables.items(), "o+", strict=True):
            axis.plot(truth[name], table[name], marker, label=stage)
        axis.axline((truth[name].mean(),) * 2, slope=1, color="grey", lw=0.8)
        axis.set(title=QUANTITIES.get(name, name), xlabel=truth_name, ylabel="measured")
    axes[0].legend()
    figure.suptitle(title)
    return figure
