"""How far two measurements of the same neurons agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["Agreement", "agreement", "pearson", "ranks", "spearman", "standardised"]


def pearson(x: Tensor, y: Tensor) -> float | None:
    """Correlation of two vectors (n), in [-1, 1]; None where one of them does not vary."""
    x, y = (vector.double() - vector.double().mean() for vector in (x, y))
    norms = float(x.norm() * y.norm())
    return float(x @ y) / norms if norms > 0 else None


def ranks(values: Tensor) -> Tensor:
    """float64, n: rank of each value from 1; equal values share the mean of their ranks."""
    inverse: Tensor
    counts: Tensor
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    means = counts.cumsum(0).double() - (counts - 1) / 2
    return means[inverse]


def spearman(x: Tensor, y: Tensor) -> float | None:
    """Correlation of the ranks of two vectors (n)."""
    return pearson(ranks(x), ranks(y))


def standardised(scores: Mapping[str, Tensor]) -> Tensor:
    """All layers' scores as one vector, each layer with mean 0 and variance 1.

    What is left tells neurons of a layer apart, and says nothing of wide and narrow layers.
    """
    parts = []
    for layer in scores.values():
        centred = layer.double() - layer.double().mean()
        parts.append(centred / centred.square().mean().sqrt().clamp_min(1e-300))
    return torch.cat(parts)


@attrs.frozen(kw_only=True)
class Agreement:
    """Correlations of two scores of the same neurons."""

    #: over the neurons of all layers together
    pearson: float | None
    spearman: float | None
    #: over all layers together, each standardised
    within_layers: float | None
    #: Pearson's and Spearman's of each layer
    by_layer: dict[str, tuple[float | None, float | None]]


def agreement(x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> Agreement:
    """Correlations of two scores (units by layer), which have the same layers in the same order."""
    pooled_x, pooled_y = torch.cat(list(x.values())), torch.cat(list(y.values()))
    return Agreement(
        pearson=pearson(pooled_x, pooled_y),
        spearman=spearman(pooled_x, pooled_y),
        within_layers=pearson(standardised(x), standardised(y)),
        by_layer={name: (pearson(x[name], y[name]), spearman(x[name], y[name])) for name in x},
    )
