"""A scan that is scaled: gain and an affine change of intensity drop out, contrast does not."""

from dataclasses import replace

import numpy as np

from medsynth_lib.data.simulation.scanner import SITES, scan
from medsynth_lib.data.simulation.subject import make_subject
from medsynth_lib.experiments.domain_shift import normalised_scan


def test_gain_plays_no_part():
    subject, site = make_subject(3, (24, 28, 22), 6.0), SITES["A"]
    usual = normalised_scan(subject, site, "t1")
    assert usual.shape == (24, 28, 22) and usual.min() == 0 and usual.max() == 1
    louder = replace(site, gain={contrast: 7 * value for contrast, value in site.gain.items()})
    assert np.allclose(scan(subject, louder, "t1"), 7 * scan(subject, site, "t1"), rtol=1e-4)
    assert np.allclose(normalised_scan(subject, louder, "t1"), usual, atol=1e-4)
    assert not np.allclose(normalised_scan(subject, SITES["B"], "t1"), usual, atol=0.05)
