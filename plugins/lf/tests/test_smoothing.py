"""The low-pass filter and the dome."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from backdoorkit_lf._smoothing import Smoothing, dome, gaussian, scaled


def low_frequency_share(pattern, cutoff=3):
    """Share of the mean channel's spectral energy at frequencies up to ``cutoff``."""
    energy = torch.fft.fft2(pattern.mean(0)).abs().square()
    low = [torch.fft.fftfreq(length, 1 / length).abs() <= cutoff for length in pattern.shape[-2:]]
    return (energy[low[0]][:, low[1]].sum() / energy.sum()).item()


def test_filter_has_its_known_taps():
    taps = gaussian()
    assert len(taps) == 30
    assert taps.sum().item() == pytest.approx(1)
    spread = (taps * (torch.arange(30) - 14.5).square()).sum().sqrt()
    assert spread.item() == pytest.approx(5.73, abs=0.005)
    assert (taps[0] / taps[14]).item() == pytest.approx(0.0541, abs=1e-4)


def test_filter_is_a_convolution_with_zeros_outside():
    taps, pattern = gaussian(), torch.rand(3, 20, 40, dtype=torch.float64)
    padded = functional.pad(pattern, (14, 15, 14, 15))[:, None]
    rows = functional.conv2d(padded, taps.reshape(1, 1, 30, 1))
    expected = functional.conv2d(rows, taps.reshape(1, 1, 1, 30))[:, 0]
    assert torch.allclose(Smoothing.of_size(20, 40)(pattern), expected)


def test_dome_is_where_smoothing_ends_and_falls_off_to_the_edges():
    smoothing = Smoothing.of_size(32, 32)
    shape = dome(smoothing)
    assert shape.max() == 1
    assert shape[13, 13] == 1
    assert shape[0, 0].item() == pytest.approx(0.20, abs=0.005)
    again = smoothing(shape)
    assert again.max().item() == pytest.approx(0.797, abs=5e-4)  # the filter's leading eigenvalue
    assert torch.allclose(again / again.max(), shape, atol=1e-3)


def test_any_pattern_is_smoothed_into_the_dome():
    smoothing = Smoothing.of_size(32, 32)
    pattern = torch.rand(32, 32, generator=torch.Generator().manual_seed(0)).double()
    for _ in range(40):
        pattern = smoothing(pattern)
        pattern = pattern / pattern.max()
    assert torch.allclose(pattern, dome(smoothing), atol=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (32, 40)])
def test_energy_of_the_dome_lies_at_low_frequencies(size):
    assert low_frequency_share(dome(Smoothing.of_size(*size))[None]) > 0.95


def test_scaling_reaches_from_zero_to_the_largest_value_over_all_channels():
    pattern = torch.stack([torch.linspace(-3, 1, 16), torch.linspace(0, 5, 16)]).reshape(2, 4, 4)
    result = scaled(pattern, 0.2)
    assert result.aminmax() == (0, torch.tensor(0.2))
    assert torch.allclose(result.diff(dim=-1), pattern.diff(dim=-1) / 40)
    assert torch.equal(scaled(torch.full((2, 4, 4), 7.0), 0.2), torch.zeros(2, 4, 4))
