"""The low-pass filter that makes patterns smooth, and the dome that it leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Smoothing", "dome", "gaussian", "scaled"]

#: taps and standard deviation in pixels of the Gaussian, for images of every size
_TAPS: Final = 30
_SIGMA: Final = 6.0
#: power iterations; at 32 pixels the dome has converged
_ROUNDS: Final = 20


def gaussian() -> Tensor:
    """The filter's taps, float64, summing to 1; an even number, so they centre on half a pixel."""
    offsets = torch.arange(_TAPS, dtype=torch.float64) - (_TAPS - 1) / 2
    taps = torch.exp(-0.5 * (offsets / _SIGMA).square())
    return taps / taps.sum()


@attrs.frozen(eq=False)
class Smoothing:
    """G: a Gaussian over rows, then columns, of each channel; beyond the image lie zeros.

    A separable filter is a matrix on either side: ``rows`` is H x H, ``columns`` is W x W.
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def of_size(cls, height: int, width: int) -> Smoothing:
        """The filter for images of ``height`` x ``width``, in float64 on the CPU."""
        return cls(_band(height), _band(width))

    def to(self, like: Tensor) -> Smoothing:
        """The same with the type and on the device of ``like``."""
        return Smoothing(self.rows.to(like), self.columns.to(like))

    def __call__(self, pattern: Tensor) -> Tensor:
        """``pattern`` (... x H x W), smoothed."""
        return self.rows @ pattern @ self.columns.T


def scaled(pattern: Tensor, largest: float) -> Tensor:
    """N: ``pattern`` shifted and scaled to reach from 0 to ``largest``, over all channels alike.

    A flat pattern becomes zero.
    """
    low, high = pattern.aminmax()
    # The smallest number instead of 0 / 0: it leaves every other quotient as it is.
    span = (high - low).clamp_min(torch.finfo(pattern.dtype).tiny)
    return largest * ((pattern - low) / span)


def dome(smoothing: Smoothing) -> Tensor:
    """The shape that repeated smoothing leaves of any pattern: float64, H x W, largest value 1.

    Power iteration on G: it ends at G's leading eigenvector, a bump that falls off to the edges.
    """
    height, width = len(smoothing.rows), len(smoothing.columns)
    shape = torch.ones(height, width, dtype=torch.float64)
    for _ in range(_ROUNDS):
        shape = smoothing(shape)
        shape = shape / shape.max()
    return shape


def _band(length: int) -> Tensor:
    """The filter along one axis: row i holds the weights of pixels i - 14 to i + 15."""
    taps, places = gaussian(), torch.arange(length)
    index = places - places[:, None] + (_TAPS - 1) // 2
    inside = (index >= 0) & (index < _TAPS)
    return torch.where(inside, taps[index.clamp(0, _TAPS - 1)], 0.0)
