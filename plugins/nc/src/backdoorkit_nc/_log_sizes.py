"""Outliers among the logarithms of the norms: a test of our own, beside the paper's.

A mask's norm is a size: positive, and twice as large as another rather than ten pixels larger. The
smallest is compared with the mean and standard deviation of the logarithms of all larger ones (a
deleted residual, as in Grubbs' test), and so is the second smallest, since two targets would hide
each other in the first comparison.
"""

from __future__ import annotations

import functools
from typing import Final

import torch
from torch import Tensor

__all__ = ["log_size_indices", "null_scores"]

#: sizes below a thousandth of a pixel are nothing
_LEAST_NORM: Final = 1e-3
#: the standard deviation is at least this: nearly equal classes make no outlier
_LEAST_DEVIATION: Final = 0.02
#: with fewer classes, too few are left to compare a second one with
_CLASSES_FOR_TWO: Final = 6
#: residuals of both positions are brought to one scale at this quantile of clean models
_COMMON_QUANTILE: Final = 0.95
_DRAWS: Final = 100_000
#: draws at a time: bounds memory
_BLOCK: Final = 2_000_000


def log_size_indices(norms: Tensor) -> Tensor:
    """float64, K: how far the smallest norms lie below the larger ones, 0 for all other classes.

    In standard deviations of the logarithms of the larger norms; that of the second smallest is
    scaled to be as rare as that of the smallest. What hides behind a smaller outlier counts as much
    as the one it hides.
    """
    logs, order = norms.double().cpu().clamp(min=_LEAST_NORM).log().sort()
    residuals = _residuals(logs) * _scale(len(logs))
    indices = torch.zeros(len(logs), dtype=torch.float64)
    for position in range(len(residuals)):
        indices[order[position]] = residuals[position:].max().clamp(min=0)
    return indices


@functools.cache
def null_scores(classes: int) -> Tensor:
    """Sorted largest indices (float64) of clean models: independent normal logarithms."""
    return (_null_residuals(classes) * _scale(classes)).amax(dim=1).sort().values


def _residuals(ordered: Tensor) -> Tensor:
    """... x 1 or 2: the smallest values, each against the mean and deviation of all larger ones."""
    classes = ordered.shape[-1]
    found = []
    for position in range(2 if classes >= _CLASSES_FOR_TWO else 1):
        larger = ordered[..., position + 1 :]
        deviation = larger.std(dim=-1).clamp(min=_LEAST_DEVIATION)
        found.append((larger.mean(dim=-1) - ordered[..., position]) / deviation)
    return torch.stack(found, dim=-1)


@functools.cache
def _null_residuals(classes: int) -> Tensor:
    # A constant of the method: thresholds must not depend on the run's seed.
    generator = torch.Generator().manual_seed(0)
    rows = max(1, _BLOCK // classes)
    parts = []
    for start in range(0, _DRAWS, rows):
        drawn = min(rows, _DRAWS - start), classes
        logs = torch.randn(drawn, generator=generator, dtype=torch.float64)
        parts.append(_residuals(logs.sort(dim=1).values))
    return torch.cat(parts)


@functools.cache
def _scale(classes: int) -> Tensor:
    """1 or 2 factors; the first is 1."""
    typical = _null_residuals(classes).quantile(_COMMON_QUANTILE, dim=0)
    return typical[0] / typical
