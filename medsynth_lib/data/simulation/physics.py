"""MR signal equations and the tissue table: what a scanner's settings do to each tissue.

Times are in milliseconds, flip angles in degrees, signals in units of the equilibrium magnetisation of pure water.
All equations are exact steady states of the Bloch equations for ideal spoiling and instantaneous pulses; the tests hold
each of them against a time-stepped Bloch simulation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

Array: TypeAlias = float | np.ndarray

T2_STAR_OVER_T2 = 0.7  # assumed: gradient echoes decay faster than spin echoes by field inhomogeneity
GADOLINIUM_T1_SHORTENING = 838.0  # ms in enhancing glioma at 3 T: 838 +- 210, Mueller et al. 2020 (abstract)


def spin_echo(pd: Array, t1: Array, t2: Array, tr: float, te: float) -> Array:
    r"""Return the signal of a 90-180 spin echo repeated every TR.

    It makes the T2-weighted image, and site C's T1-weighted one:
    $S = \rho\,[1 - 2e^{-(TR-TE/2)/T_1} + e^{-TR/T_1}]\,e^{-TE/T_2}$
    (Bernstein, King, Zhou: Handbook of MRI Pulse Sequences, 2004, section 14.3). The middle term is the 180-degree pulse, which
    the textbook short form $1 - e^{-TR/T_1}$ drops.

    Args:
        pd: proton density relative to water.
        t1, t2: relaxation times in ms.
        tr, te: repetition and echo time in ms.
    """
    recovery = 1 - 2 * np.exp(-(tr - te / 2) / t1) + np.exp(-tr / t1)
    return pd * recovery * np.exp(-te / t2)


def inversion_recovery(pd: Array, t1: Array, t2: Array, tr: float, te: float, ti: float) -> Array:
    r"""Return the signed signal of a 180-TI-90-180 inversion-recovery spin echo.

    It is FLAIR when TI nulls the fluid:
    $S = \rho\,[1 - 2e^{-TI/T_1} + 2e^{-(TR-TE/2)/T_1} - e^{-TR/T_1}]\,e^{-TE/T_2}$
    (Bernstein et al. 2004, section 14.2, with perfect inversion). The signal is negative before the null. Tissues that share a
    voxel add with their signs; the scanner's image alone is a magnitude.

    Args:
        pd: proton density relative to water.
        t1, t2: relaxation times in ms.
        tr, te, ti: repetition, echo and inversion time in ms.

    Raises:
        ValueError: where TI and TE do not fit into TR.
    """
    if ti + te > tr:
        raise ValueError(
            f"inversion recovery: TI={ti} and TE={te} do not fit into TR={tr} ms; lengthen TR or shorten TI"
        )
    recovery = 1 - 2 * np.exp(-ti / t1) + 2 * np.exp(-(tr - te / 2) / t1) - np.exp(-tr / t1)
    return pd * recovery * np.exp(-te / t2)


def mprage(
    pd: Array,
    t1: Array,
    t2: Array,
    tr: float,
    te: float,
    ti: float,
    flip: float,
    echo_spacing: float,
    n_pulses: int = 176,
    inversion: float = 0.96,
) -> Array:
    r"""Return the signed steady-state signal of MPRAGE at the centre of k-space.

    The cycle is inversion, wait, N small pulses, wait. During the pulse train $M_z$ relaxes with
    $1/T_1^* = 1/T_1 - \ln(\cos\alpha)/\tau$ towards $M^* = (1-e^{-\tau/T_1})/(1-\cos\alpha\,e^{-\tau/T_1})$ (Deichmann & Haase
    1992, J Magn Reson 96:608). The state before each inversion is the fixed point of one whole cycle (Mugler & Brookeman 1990,
    Magn Reson Med 15:152, solved in closed form).

    Args:
        pd: proton density relative to water.
        t1, t2: relaxation times in ms.
        tr, te: repetition and echo time in ms.
        ti: from the inversion to the middle pulse, in ms.
        flip: angle of a pulse in degrees.
        echo_spacing: from pulse to pulse, in ms.
        n_pulses: of the train.
        inversion: inversion efficiency; .96 is assumed.

    Raises:
        ValueError: where the pulse train does not fit between inversion and TI, or between TI and TR.
    """
    before = ti - n_pulses // 2 * echo_spacing
    after = tr - before - n_pulses * echo_spacing
    if before < 0 or after < 0:
        raise ValueError(
            f"MPRAGE: {n_pulses} pulses of {echo_spacing} ms do not fit around TI={ti} in TR={tr} ms; "
            "shorten echo_spacing, use fewer pulses or lengthen TI and TR"
        )
    cos_a, sin_a = np.cos(np.deg2rad(flip)), np.sin(np.deg2rad(flip))
    decay = cos_a * np.exp(-echo_spacing / t1)  # of the distance to M*, per pulse: exp(-tau / T1*)
    m_star = (1 - np.exp(-echo_spacing / t1)) / (1 - decay)
    e_before, e_after, e_train = np.exp(-before / t1), np.exp(-after / t1), decay**n_pulses
    # one cycle is linear in the magnetisation m before the inversion: m -> gain * m + offset; its fixed point is m
    gain = -inversion * e_before * e_train * e_after
    offset = 1 - e_after + e_after * (m_star * (1 - e_train) + (1 - e_before) * e_train)
    m = offset / (1 - gain)
    at_centre = m_star + (1 - (1 + inversion * m) * e_before - m_star) * decay ** (n_pulses // 2)
    return pd * sin_a * at_centre * np.exp(-te / (T2_STAR_OVER_T2 * t2))


SEQUENCES: dict[str, Callable[..., Any]] = {
    "mprage": mprage,
    "spin_echo": spin_echo,
    "inversion_recovery": inversion_recovery,
}


@dataclass(frozen=True)
class Tissue:
    """One row of the tissue table: T1 and T2 in ms at 1.5 T and 3 T, proton density relative to water, and where from."""

    name: str
    t1: dict
    t2: dict
    pd: float
    source: str
    assumed: str = ""  # which of the values are assumptions; empty when all are published


WRIGHT = "T1: Wright et al. 2008, MAGMA 21:121 (MPRAGE values of the abstract)"
STANISZ = "T2: Stanisz et al. 2005, Magn Reson Med 54:507 (as quoted by secondary sources)"
WHITTALL = "PD: Whittall et al. 1997, Magn Reson Med 37:34 (rounded)"

TISSUES = (
    Tissue("white matter", {1.5: 646, 3.0: 838}, {1.5: 72, 3.0: 69}, 0.70, f"{WRIGHT}; {STANISZ}; {WHITTALL}"),
    Tissue("grey matter", {1.5: 1197, 3.0: 1607}, {1.5: 95, 3.0: 99}, 0.82, f"{WRIGHT}; {STANISZ}; {WHITTALL}"),
    Tissue(
        "deep grey matter",
        {1.5: 1096, 3.0: 1364},
        {1.5: 82, 3.0: 76},
        0.80,
        f"{WRIGHT}: mean of putamen and caudate head",
        "T2 and PD (iron shortens T2; between white and grey matter)",
    ),
    Tissue(
        "CSF",
        {1.5: 4300, 3.0: 4300},
        {1.5: 2000, 3.0: 2000},
        1.00,
        "T1: Rooney et al. 2007, Magn Reson Med 57:308 (rounded)",
        "T2 (about 2 s)",
    ),
    Tissue("oedema", {1.5: 1150, 3.0: 1450}, {1.5: 150, 3.0: 140}, 0.84, "", "all (prolonged T1 and T2)"),
    Tissue("enhancing tumour", {1.5: 1250, 3.0: 1600}, {1.5: 120, 3.0: 110}, 0.85, "", "all (before contrast agent)"),
    Tissue("necrosis", {1.5: 2200, 3.0: 2500}, {1.5: 300, 3.0: 280}, 0.95, "", "all (between tumour and CSF)"),
)
WM, GM, DEEP_GM, CSF, OEDEMA, ENHANCING, NECROSIS = range(len(TISSUES))


@dataclass(frozen=True)
class Sequence:
    """A pulse sequence and its settings, e.g. ``Sequence("spin_echo", dict(tr=5000, te=100))``; times in ms."""

    kind: str
    settings: dict
    gadolinium: bool = False  # scanned after contrast agent: the T1 of enhancing tumour is shortened


def tissue_signals(sequence: Sequence, field: float, t1_factor: float = 1.0, t2_factor: float = 1.0) -> np.ndarray:
    """Return the signed signal (tissues,) of every tissue of the table.

    Args:
        sequence: what is measured.
        field: 1.5 or 3.0, in tesla; a new one needs a new column with its source.
        t1_factor, t2_factor: multiply all relaxation times, for sensitivities and what-if questions.

    Raises:
        KeyError: for another field strength.
    """
    t1 = np.array([tissue.t1[field] for tissue in TISSUES], float)
    t2 = np.array([tissue.t2[field] for tissue in TISSUES], float)
    if sequence.gadolinium:
        t1[ENHANCING] -= GADOLINIUM_T1_SHORTENING * t1[ENHANCING] / TISSUES[ENHANCING].t1[3.0]
    pd = np.array([tissue.pd for tissue in TISSUES])
    return SEQUENCES[sequence.kind](pd, t1 * t1_factor, t2 * t2_factor, **sequence.settings)


def tissue_table() -> pd.DataFrame:
    """Return the tissue table with its sources and a plain mark on every assumed value."""
    return pd.DataFrame(
        [
            {
                "tissue": t.name,
                "T1 1.5 T": t.t1[1.5],
                "T1 3 T": t.t1[3.0],
                "T2 1.5 T": t.t2[1.5],
                "T2 3 T": t.t2[3.0],
                "PD": t.pd,
                "source": t.source or "-",
                "assumed": t.assumed or "-",
            }
            for t in TISSUES
        ]
    ).set_index("tissue")
