"""The scanner explorer: turn TR, TE, TI and field, and see what one brain looks like."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from medsynth_lib.data.simulation.physics import TISSUES, Sequence, tissue_signals
from medsynth_lib.data.simulation.scanner import ideal_image
from medsynth_lib.data.simulation.subject import Subject
from medsynth_lib.display.figures import slice_grid, slice_of
from medsynth_lib.processes import headless

RANGES = dict(tr=(300, 10_000, 100), te=(5, 200, 5), ti=(100, 4000, 50))  # ms: lowest, highest, step of the sliders


def normalised_slice(subject: Subject, sequence: Sequence, field: float, index: int) -> np.ndarray:
    """Draw an axial slice without noise, scaled so that the 99.7th percentile of the brain is 1.

    Args:
        subject: a simulated brain.
        sequence: with its times in ms.
        field: in T, 1.5 or 3.
        index: slice number along z.
    """
    image = np.abs(ideal_image(subject, sequence, field)[0].numpy()) * subject.brain
    return slice_of(image / np.percentile(image[subject.brain], 99.7), index=index)


def explore_scanner(subject: Subject, field: float = 3.0) -> Figure:
    """Show what TR, TE, TI and field do to one slice; with a live kernel, sliders follow.

    Args:
        subject: a simulated brain.
        field: of the static figure in T, 1.5 or 3.

    Returns:
        The static figure: spin echoes of rising TE, inversion recoveries of rising TI.
    """
    index = int(np.median(np.argwhere(subject.brain)[:, 2]))
    echo_times, inversion_times = (15, 40, 80, 120, 200), (400, 800, 1500, 2500, 3500)
    echoes = [Sequence("spin_echo", dict(tr=4000, te=te)) for te in echo_times]
    recoveries = [Sequence("inversion_recovery", dict(tr=9000, te=100, ti=ti)) for ti in inversion_times]
    rows = [[normalised_slice(subject, each, field, index) for each in row] for row in (echoes, recoveries)]
    figure = slice_grid(
        rows,
        ["spin echo, TR 4000\nTE →", "inversion recovery\nTR 9000, TE 100, TI →"],
        [f"TE {te} / TI {ti} ms" for te, ti in zip(echo_times, inversion_times, strict=True)],
        title=f"One simulated brain, ten settings, {field:g} T",
    )
    if not headless():
        plt.show()
        scanner_sliders(subject, index)
    return figure


def scanner_sliders(subject: Subject, index: int) -> None:
    """Display sliders for TR, TE, TI (0 is a spin echo) and field; they redraw one slice.

    Args:
        subject: a simulated brain.
        index: slice number along z.
    """
    import ipywidgets as widgets

    def redraw(tr, te, ti, field):
        if ti + te > tr:
            print("TI and TE do not fit into TR: lengthen TR")
            return
        settings = dict(tr=tr, te=te) | (dict(ti=ti) if ti else {})
        sequence = Sequence("inversion_recovery" if ti else "spin_echo", settings)
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
        left.imshow(normalised_slice(subject, sequence, field, index), origin="lower", cmap="gray", vmin=0, vmax=1)
        left.axis("off")
        right.barh([t.name for t in TISSUES], np.abs(tissue_signals(sequence, field)))
        right.set(xlabel="signal (1 = pure water at equilibrium)", xlim=(0, 1))
        plt.show()

    def slider(name, value, lowest=None):
        low, high, step = RANGES[name]
        lowest = low if lowest is None else lowest
        text = f"{name.upper()} (ms)"
        return widgets.IntSlider(value, lowest, high, step, description=text, continuous_update=False)

    widgets.interact(
        redraw,
        tr=slider("tr", 4000),
        te=slider("te", 100),
        ti=slider("ti", 0, lowest=0),
        field=widgets.ToggleButtons(options=[1.5, 3.0], description="field (T)"),
    )


def inversion_curves(field: float, tr: float, te: float, mark: float) -> Figure:
    """Draw the magnitude of the main tissues' signals against TI: why FLAIR shows fluid dark.

    Args:
        field: in T, 1.5 or 3.
        tr: repetition time in ms.
        te: echo time in ms.
        mark: the inversion time in ms that gets a line.
    """
    ti = np.arange(50, 4000, 25)
    signals = np.stack([tissue_signals(Sequence("inversion_recovery", dict(tr=tr, te=te, ti=t)), field) for t in ti])
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for tissue, curve in zip(TISSUES, signals.T, strict=True):
        if tissue.name in ("white matter", "grey matter", "CSF", "oedema"):
            axis.plot(ti, np.abs(curve), label=tissue.name)
    axis.axvline(mark, color="k", linestyle=":", label=f"TI used: {mark} ms")
    axis.set(
        xlabel="inversion time TI (ms)",
        ylabel="|signal|",
        title=f"Inversion recovery, {field:g} T, TR {tr}, TE {te} ms",
    )
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return figure
