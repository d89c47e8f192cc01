"""Confidence intervals of a share, of an AUROC, and of a quantile."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backdoorkit.api import area_under_curve

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bootstrap", "delong", "newcombe", "order_statistics", "wilson"]

Interval = tuple[float, float]


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(hits: int, count: int, confidence: float) -> Interval:
    """Wilson's interval of a share; it is never a point, also of 0 and of all."""
    z = _z(confidence)
    share, weight = hits / count, z * z / count
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(area: float, positives: int, negatives: int, confidence: float) -> Interval:
    """Newcombe's method 5 (from memory): the areas θ that ``area`` is not too unlikely for.

    (area − θ)² = z² θ (1 − θ) / (m n) · (1 + N (1 − θ) / (2 − θ) + N θ / (1 + θ)), with
    N = (m + n) / 2 − 1. Solved by bisection. Where the separation is perfect it is no point.
    """
    z, extra = _z(confidence), (positives + negatives) / 2 - 1

    def excess(theta: float) -> float:
        spread = 1 + extra * (1 - theta) / (2 - theta) + extra * theta / (1 + theta)
        variance = theta * (1 - theta) / (positives * negatives) * spread
        return (area - theta) ** 2 - z * z * variance

    return _root(excess, 0.0, area), _root(excess, 1.0, area)


def _root(excess: Callable[[float], float], outside: float, inside: float) -> float:
    """Where ``excess`` changes its sign between a point that is outside and one inside."""
    for _ in range(60):
        middle = (outside + inside) / 2
        outside, inside = (middle, inside) if excess(middle) > 0 else (outside, middle)
    return inside


def delong(positives: Tensor, negatives: Tensor, confidence: float) -> Interval:
    """DeLong's interval: normal, with the variance of the two groups' placement values."""
    above = _placements(positives, negatives)
    below = 1 - _placements(negatives, positives)
    area = float(above.mean())
    variance = sum(float(p.var()) / len(p) for p in (above, below) if len(p) > 1)
    half = _z(confidence) * math.sqrt(variance)
    return max(0.0, area - half), min(1.0, area + half)


def _placements(scores: Tensor, others: Tensor) -> Tensor:
    """Share of ``others`` (float64) below each of ``scores``; equal ones count half."""
    ordered = others.sort().values
    below = torch.searchsorted(ordered, scores.contiguous())
    not_above = torch.searchsorted(ordered, scores.contiguous(), right=True)
    return (below + not_above).double() / 2 / len(others)


def bootstrap(positives: Tensor, negatives: Tensor, confidence: float, resamples: int) -> Interval:
    """Percentiles of AUROC over resamples of both groups; the draws are always the same."""
    # A constant of the metric: a metric has no seed.
    generator = torch.Generator().manual_seed(0)
    areas = []
    for _ in range(resamples):
        drawn = [
            group[torch.randint(len(group), (len(group),), generator=generator)]
            for group in (positives, negatives)
        ]
        areas.append(area_under_curve(*drawn) or 0.0)
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2]).double()
    low, high = torch.tensor(areas).double().quantile(ends).tolist()
    return low, high


def order_statistics(
    values: Tensor, share: float, confidence: float
) -> tuple[float | None, float | None]:
    """Interval of the ``share``-quantile without any assumption: two of the sorted values.

    An end is None where there are too few values to bound the quantile on that side. How many
    values lie below the quantile is binomial; each end keeps half of what is left of 1.
    """
    ordered, count = values.sort().values, len(values)
    tail, below, left = (1 - confidence) / 2, 0.0, 0
    low: float | None = None
    for k in range(count + 1):
        mass = math.exp(
            math.lgamma(count + 1)
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            + k * math.log(share)
            + (count - k) * math.log1p(-share)
        )
        below += mass
        if below <= tail:
            left = k + 1
            low = float(ordered[left - 1]) if left <= count else low
        if below >= 1 - tail:
            return low, float(ordered[k]) if k < count else None
    return low, None
