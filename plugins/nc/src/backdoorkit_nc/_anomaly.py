"""Which classes' triggers are outliers in size, and how often chance alone would say so."""

from __future__ import annotations

import functools
from typing import Final

import attrs
import torch
from torch import Tensor

__all__ = ["Anomaly", "anomaly", "family_wise_threshold", "null_indices", "p_value"]

#: makes a median absolute deviation estimate the standard deviation of a normal distribution
_CONSISTENCY: Final = 1.4826
#: the deviation is at least this share of the median: nearly equal classes make no outlier
_LEAST_DEVIATION: Final = 0.02
#: clean models are drawn in blocks, as many as make about so many norms
_BLOCK: Final = 2_000
_MOST_BLOCKS: Final = 50
_FEWEST_BLOCKS: Final = 10
_DRAWN_NORMS: Final = 4_000_000


@attrs.frozen(kw_only=True, eq=False)
class Anomaly:
    """Norms as a sample with outliers."""

    median: float
    #: 1.4826 times the median absolute deviation, after the guard
    deviation: float
    #: whether the guard decided the deviation, because the norms are nearly equal
    is_degenerate: bool
    #: float64, K: distance below the median in deviations; 0 above the median
    indices: Tensor


def median(values: Tensor) -> Tensor:
    """Median over the last dimension; the mean of the middle pair where their number is even.

    ``torch.median`` takes the lower one of the pair, which inflates the anomaly index.
    """
    ordered, count = values.sort(dim=-1).values, values.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2


def anomaly(norms: Tensor) -> Anomaly:
    """Anomaly index of every class from the L1 norms of the masks (K, in pixels)."""
    norms = norms.double().cpu()
    middle = median(norms)
    deviation = _CONSISTENCY * median((norms - middle).abs())
    least = max(_LEAST_DEVIATION * float(middle), 1e-12)
    used = max(float(deviation), least)
    return Anomaly(
        median=float(middle),
        deviation=used,
        is_degenerate=float(deviation) < least,
        indices=(middle - norms).clamp(min=0) / used,
    )


@functools.cache
def null_indices(classes: int) -> Tensor:
    """Sorted anomaly indices (float64) of clean models: ``classes`` independent normal norms.

    The index knows neither location nor scale, so their number is all that matters.
    """
    # A constant of the method: thresholds must not depend on the run's seed.
    generator = torch.Generator().manual_seed(0)
    parts = []
    blocks = min(_MOST_BLOCKS, max(_FEWEST_BLOCKS, _DRAWN_NORMS // (_BLOCK * classes)))
    for _ in range(blocks):  # bounds memory
        norms = torch.randn(_BLOCK, classes, generator=generator, dtype=torch.float64)
        middle = median(norms)
        deviation = _CONSISTENCY * median((norms - middle[:, None]).abs())
        parts.append((middle - norms.amin(dim=1)) / deviation)
    return torch.cat(parts).sort().values


def family_wise_threshold(null: Tensor, false_alarm_rate: float) -> float:
    """Index that the most anomalous class of a clean model exceeds with that probability."""
    return float(torch.quantile(null, 1 - false_alarm_rate))


def p_value(index: float, null: Tensor) -> float:
    """Probability that a clean model's largest index, distributed as ``null``, is at least this."""
    return float((null >= index).sum() + 1) / (len(null) + 1)
