"""Wrong relaxation times, wrong scanner settings, and the share of a gap that a curve closes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medsynth_lib.data.simulation import protocol
from medsynth_lib.data.simulation.scanner import SITES
from medsynth_lib.experiments.adaptation.sensitivity import GapOfCurve, literature_with, with_wrong_setting


def test_only_the_given_times_change():
    table, usual = literature_with("t1", [(None, 1124, 884), (None, 1820, None)]), protocol.literature()
    assert np.exp(table["t1", 1.5])[1:].tolist() == pytest.approx([1124, 884])
    assert table["t1", 3.0][[0, 2]].tolist() == usual["t1", 3.0][[0, 2]].tolist()
    assert all((table[key] == usual[key]).all() for key in usual if key[0] != "t1")


def test_one_setting_of_one_sequence_is_wrong():
    scanner = SITES["B"]
    wrong = with_wrong_setting(scanner, "t1", "ti", 1.1)
    assert wrong.sequences["t1"].settings["ti"] == pytest.approx(1.1 * scanner.sequences["t1"].settings["ti"])
    assert wrong.sequences["t2"] == scanner.sequences["t2"] and wrong.field == scanner.field
    rest = {k: v for k, v in wrong.sequences["t1"].settings.items() if k != "ti"}
    assert rest == {k: v for k, v in scanner.sequences["t1"].settings.items() if k != "ti"}


def test_the_identity_leaves_the_gap_and_a_better_curve_closes_some():
    mask = torch.ones(1, 4, 4, 4) > 0
    truth = torch.rand(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.5
    outputs = [0.5 * truth, 0.5 * truth + 0.01]
    target = [dict(y=truth, mask=mask)] * 2
    low = np.mean([-10 * np.log10(float((o - truth).square().mean())) for o in outputs])
    as_it_is = SimpleNamespace(output_curve=lambda curve: curve)
    gap = GapOfCurve(as_it_is, outputs, target, [mask, mask], low, low + 10)
    x = np.array([[0.0, 1.0]])
    assert gap((x, x)) == pytest.approx(0, abs=1e-5)
    assert gap((x, np.array([[0.0, 1.9]]))) > 0.9 > gap((x, np.array([[0.0, 1.5]]))) > 0.1
