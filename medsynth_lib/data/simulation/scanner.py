"""Simulated scanners: what a site does to the image of a subject it cannot change.

A site is a field strength, four pulse sequences, a point spread, a receive coil, noise and an arbitrary gain. Sequence
settings are typical-looking choices, not taken from the headers of any data set.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from medsynth_lib.data.simulation.atlas import low_pass_sigma
from medsynth_lib.data.simulation.fields import gaussian_blur, random_field
from medsynth_lib.data.simulation.physics import WM, Sequence, tissue_signals
from medsynth_lib.data.simulation.subject import Subject, grid_axes

Triple = tuple[float, float, float]

CONTRASTS = ("t1", "t1ce", "t2", "flair")


@dataclass(frozen=True)
class Site:
    """One scanner.

    Attributes:
        noise: Rician sigma relative to white matter.
        bias: log-amplitude of the coil field.
        fwhm: point spread (x, y, z) in mm, a contrast.
        gain: the number that white matter is stored as, a contrast.
    """

    name: str
    field: float
    sequences: dict
    fwhm: dict
    gain: dict
    noise: float
    bias: float


def site(
    name: str,
    field: float,
    t1: Sequence,
    t2: Sequence,
    flair: Sequence,
    fwhm_t1: Triple,
    fwhm_t2: Triple,
    gain: Triple,
    noise: float,
    bias: float,
) -> Site:
    """Assemble a Site; the contrast-enhanced T1 repeats the T1 sequence after gadolinium.

    Args:
        name: of the site.
        field: in tesla, 1.5 or 3.0.
        t1, t2, flair: sequences.
        fwhm_t1, fwhm_t2: point spread (x, y, z) in mm of T1, and of T2 and FLAIR.
        gain: of T1, T2 and FLAIR.
        noise: Rician sigma relative to white matter.
        bias: log-amplitude of the coil field.
    """
    sequences = dict(t1=t1, t1ce=Sequence(t1.kind, t1.settings, gadolinium=True), t2=t2, flair=flair)
    return Site(
        name,
        field,
        sequences,
        dict(t1=fwhm_t1, t1ce=fwhm_t1, t2=fwhm_t2, flair=fwhm_t2),
        dict(zip(("t1", "t2", "flair", "t1ce"), (*gain, gain[0]), strict=True)),
        noise,
        bias,
    )


def mprage(tr: float, te: float, ti: float, flip: float, echo_spacing: float) -> Sequence:
    """Make the settings of `physics.mprage`: ms and degrees."""
    return Sequence("mprage", dict(tr=tr, te=te, ti=ti, flip=flip, echo_spacing=echo_spacing))


def spin_echo(tr: float, te: float) -> Sequence:
    """Make the settings of `physics.spin_echo`, in ms."""
    return Sequence("spin_echo", dict(tr=tr, te=te))


def inversion_recovery(tr: float, te: float, ti: float) -> Sequence:
    """Make the settings of `physics.inversion_recovery`, in ms."""
    return Sequence("inversion_recovery", dict(tr=tr, te=te, ti=ti))


SITES = {
    s.name: s
    for s in (
        site(
            "A",
            3.0,
            mprage(2300, 3, 1000, 9, 7),
            spin_echo(5000, 100),
            inversion_recovery(9000, 120, 2500),
            (1, 1, 1),
            (1, 1, 3),
            (1500, 900, 700),
            noise=0.02,
            bias=0.08,
        ),
        site(
            "B",
            1.5,
            mprage(1900, 4, 900, 8, 8),
            spin_echo(4500, 95),
            inversion_recovery(9000, 100, 2400),
            (1.2, 1.2, 1.5),
            (1.2, 1.2, 5),
            (420, 2600, 1500),
            noise=0.045,
            bias=0.06,
        ),
        # the hard one: T1 weighting by spin echo, thick slices, fluid not quite nulled
        site(
            "C",
            1.5,
            spin_echo(550, 14),
            spin_echo(3500, 85),
            inversion_recovery(8000, 100, 2200),
            (1.2, 1.2, 5),
            (1.2, 1.2, 5),
            (420, 2600, 1500),
            noise=0.05,
            bias=0.06,
        ),
    )
}


# what a domain shift is made of: the parts of a site that can be exchanged one at a time
CAUSES = {
    "contrast": ("field", "sequences"),
    "resolution": ("fwhm",),
    "noise": ("noise",),
    "coil field": ("bias",),
    "gain": ("gain",),
}


def mixed_site(site: Site, other: Site, *causes: str) -> Site:
    """Take causes of domain shift from another site; the name, and so the noise, stays.

    Raises:
        KeyError: for a cause that is not in `CAUSES`.
    """
    return replace(site, **{name: getattr(other, name) for cause in causes for name in CAUSES[cause]})


def scan(subject: Subject, site: Site, contrast: str, noise: bool = True) -> np.ndarray:
    """Draw the magnitude image of a subject in scanner units.

    Args:
        subject: who is scanned.
        site: the scanner.
        contrast: t1, t1ce, t2 or flair.
        noise: False draws what an ideal coil and receiver give: no noise, no coil field, gain exactly the site's.

    Returns:
        float32 (x, y, z), 0 outside the brain, as BraTS ships it.

    Raises:
        KeyError: for another contrast.
    """
    if contrast not in site.sequences:
        raise KeyError(f"site {site.name} has no contrast {contrast!r}; choose from {', '.join(site.sequences)}")
    rng = np.random.default_rng([subject.seed, ord(site.name[0]), CONTRASTS.index(contrast)])
    image, white = ideal_image(subject, site.sequences[contrast], site.field)
    image = blur_to(image, site.fwhm[contrast], subject.spacing)
    gain = site.gain[contrast] / white
    if noise:
        image *= torch.exp(site.bias * random_field(rng, grid_axes(subject.shape, subject.spacing), 90)[0])
        sigma = site.noise * white * min(1.0, 1.5 / subject.spacing)  # larger voxels average noise
        gain *= np.exp(rng.normal(0, 0.2))  # scanners adjust their gain to every patient
        image = rician(image, sigma, rng)
    else:
        image = image.abs_()
    return (image * torch.from_numpy(subject.brain) * float(gain)).numpy()


def ideal_image(subject: Subject, sequence: Sequence, field: float) -> tuple[torch.Tensor, float]:
    """Return the noise-free signed signal of a pulse sequence.

    The subject's T1 and T2 deviations enter to first order, S + dS/dlnT1 * d1 + dS/dlnT2 * d2, tissue by tissue.

    Args:
        subject: who is scanned.
        sequence: what is measured.
        field: in tesla, 1.5 or 3.0.

    Returns:
        The signal (x, y, z) in units of pure water, and white matter's magnitude.
    """
    signal = tissue_signals(sequence, field)
    d_t1 = (tissue_signals(sequence, field, t1_factor=1.02) - tissue_signals(sequence, field, t1_factor=0.98)) / 0.04
    d_t2 = (tissue_signals(sequence, field, t2_factor=1.02) - tissue_signals(sequence, field, t2_factor=0.98)) / 0.04
    weights = torch.from_numpy(np.stack([signal, d_t1, d_t2])).float()
    s, s1, s2 = (weights @ subject.fractions.flatten(1)).unflatten(1, subject.shape)
    return s.addcmul_(s1, subject.t1_field).addcmul_(s2, subject.t2_field), abs(float(signal[WM]))


def blur_to(image: torch.Tensor, fwhm: Triple, spacing: float) -> torch.Tensor:
    """Blur (x, y, z) to a site's point spread, less the atlas's own low-pass for this grid.

    Args:
        image: (x, y, z).
        fwhm: point spread along each axis in mm.
        spacing: edge of a voxel in mm.
    """
    applied = low_pass_sigma(spacing)
    sigma = [np.sqrt(max((f / 2.355) ** 2 - applied**2, 0)) / spacing for f in fwhm]
    return gaussian_blur(image[None], sigma)[0]


def rician(image: torch.Tensor, sigma: float, rng: np.random.Generator) -> torch.Tensor:
    """Return the magnitude of an image with complex Gaussian noise (Gudbjartsson & Patz 1995).

    Args:
        image: signed signal.
        sigma: standard deviation of the noise in each of the two parts.
        rng: of the noise.
    """
    n = torch.from_numpy(rng.standard_normal((2, *image.shape), dtype=np.float32)).mul_(sigma)
    return (image + n[0]).square_().add_(n[1].square_()).sqrt_()
