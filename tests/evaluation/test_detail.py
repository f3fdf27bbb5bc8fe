"""Detail: closed forms of the Laplacian, the spread and the lattice."""

import math

import pytest
import torch

from medsynth_lib.evaluation.detail import laplacian_energy, lattice, spread


def waves(n=4, size=32, period=8, axis=2):
    """Volumes cos(2 pi x / period + phase) along one axis."""
    x = torch.arange(size).view([-1 if k == axis else 1 for k in range(5)]).expand(n, 1, size, size, size)
    phase = torch.rand(n, generator=torch.Generator().manual_seed(0)) * 2 * math.pi
    return torch.cos(2 * math.pi * x / period + phase.view(-1, 1, 1, 1, 1))


def test_the_laplacian_of_a_square_is_6_and_of_a_slope_0():
    x, y, z = torch.meshgrid(*[torch.arange(8.0)] * 3, indexing="ij")
    square, slope = (x**2 + y**2 + z**2)[None, None], (x - 2 * y + 3 * z)[None, None]
    assert laplacian_energy(square) == pytest.approx(36) and laplacian_energy(slope) == pytest.approx(0, abs=1e-6)


def test_blur_lowers_the_laplacian_as_it_should():
    """A wave of period p along one axis has the energy (2 - 2 cos(2 pi / p))^2 / 2."""
    x = torch.arange(33.0).view(1, 1, -1, 1, 1).expand(1, 1, 33, 33, 33)  # 31 inner voxels, nearly whole periods
    for period in (4, 8):
        want = (2 - 2 * math.cos(2 * math.pi / period)) ** 2 / 2
        assert laplacian_energy(torch.cos(2 * math.pi * x / period)) == pytest.approx(want, rel=0.05)


def test_spread_of_noise_and_of_copies():
    noise = torch.randn(20, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    assert spread(noise) == pytest.approx(2**0.5, rel=0.01)
    pairs = [float((a - b).square().mean()) for i, a in enumerate(noise) for b in noise[:i]]
    assert spread(noise) == pytest.approx((sum(pairs) / len(pairs)) ** 0.5, rel=1e-5)
    assert spread(noise[:1].expand(5, -1, -1, -1, -1)) == 0


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_a_lattice_stands_out_along_its_axis(axis):
    noise = torch.randn(8, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    comb = noise + 0.2 * waves(8, period=4, axis=axis)
    for along in (-3, -2, -1):
        assert lattice(noise, axis=along) == pytest.approx(1, abs=0.1)
        wanted = (
            1 + 0.2**2 * 32 / 4 if along == axis - 5 else 1
        )  # |0.2 cos| has power (0.2 * 32 / 2)^2 over 32 of noise
        assert lattice(comb, axis=along) == pytest.approx(wanted, abs=0.15)


def test_what_all_volumes_share_is_no_lattice():
    """The mean is taken off: a comb that stands alike in all volumes belongs to the anatomy."""
    noise = torch.randn(8, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    assert lattice(noise + waves(8, period=4)[:1]) == pytest.approx(lattice(noise), abs=1e-3)
