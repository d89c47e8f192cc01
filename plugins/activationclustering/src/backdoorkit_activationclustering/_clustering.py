"""Reduction to a few components, 2-means, and how well its clusters are apart."""

from __future__ import annotations

import warnings
from typing import Final

import attrs
import torch
from torch import Tensor

__all__ = ["Clusters", "reduce", "silhouette", "two_means"]

_MOST_STEPS: Final = 100
#: samples whose distances to all others are in memory together
_CHUNK: Final = 1024


def reduce(features: Tensor, dimensions: int, kind: str, generator: torch.Generator) -> Tensor:
    """The first components (float64, n x at most ``dimensions``) of n x d features.

    Fewer where the features span less. ``"ica"`` also gives all components the same variance.
    """
    centred = features.double() - features.double().mean(dim=0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    rank = int((singular > 1e-9 * max(float(singular[0]), 1e-300)).sum())
    kept = min(dimensions, rank)
    components: Tensor = left[:, :kept] * singular[:kept]
    return components if kind == "pca" or kept < 2 else _independent(components, generator)


def _independent(components: Tensor, generator: torch.Generator) -> Tensor:
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    ica = FastICA(random_state=seed, whiten="unit-variance", max_iter=500)  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        # Components that have not settled are still a rotation of the whitened data.
        warnings.simplefilter("ignore", ConvergenceWarning)
        independent: Tensor = torch.from_numpy(ica.fit_transform(components.numpy()))
    return independent


@attrs.frozen(kw_only=True, eq=False)
class Clusters:
    """Two clusters of n points; the smaller one is the first where they differ in size."""

    #: bool, n: the point is in the smaller cluster
    small: Tensor
    #: 2 x d: centres of the smaller and of the larger
    centres: Tensor

    @property
    def share(self) -> float:
        """Share of the points in the smaller cluster."""
        return float(self.small.double().mean())


def two_means(points: Tensor, starts: int, generator: torch.Generator) -> Clusters:
    """2-means of n x d ``points``; of ``starts`` runs the one with the least spread counts.

    The runs go on side by side. First centres are drawn as by k-means++.
    """
    first = points[torch.randint(len(points), (starts,), generator=generator)]
    distances = torch.cdist(first, points).square()
    # All points equal: any will do.
    weights = distances + (distances.sum(dim=1, keepdim=True) == 0)
    second = points[torch.multinomial(weights, 1, generator=generator)[:, 0]]
    centres = torch.stack([first, second], dim=1)
    for _ in range(_MOST_STEPS):
        belongs = torch.cdist(centres, points).argmin(dim=1)
        moved = torch.stack([_means(points, belongs == k, centres[:, k]) for k in (0, 1)], dim=1)
        if torch.equal(moved, centres):
            break
        centres = moved
    nearest = torch.cdist(centres, points).min(dim=1)
    best = int(nearest.values.square().sum(dim=1).argmin())
    ones = nearest.indices[best] == 1
    swap = 2 * int(ones.sum()) > len(points)
    order = [0, 1] if swap else [1, 0]
    return Clusters(small=~ones if swap else ones, centres=centres[best, order])


def _means(points: Tensor, members: Tensor, otherwise: Tensor) -> Tensor:
    """Means of the members (starts x n) of each run; ``otherwise`` where there are none."""
    sizes = members.sum(dim=1, keepdim=True)
    means = members.double() @ points / sizes.clamp(min=1)
    return torch.where(sizes > 0, means, otherwise)


def silhouette(points: Tensor, small: Tensor) -> float:
    """Mean of (b − a) / max(a, b): a and b are mean distances to one's own cluster and the other.

    0 for points that are alone in theirs, and where there is one cluster only.
    """
    sizes = torch.stack([(~small).sum(), small.sum()])
    if not bool(sizes.all()):
        return 0.0
    total = 0.0
    for rows in torch.split(torch.arange(len(points)), _CHUNK):
        distances = torch.cdist(points[rows], points)
        sums = torch.stack([distances[:, ~small].sum(dim=1), distances[:, small].sum(dim=1)], dim=1)
        own = small[rows].long()[:, None]
        others = (sizes[own] - 1).clamp(min=1)
        inside = (sums.gather(1, own) / others)[:, 0]
        outside = (sums.gather(1, 1 - own) / sizes[1 - own])[:, 0]
        values = (outside - inside) / torch.maximum(inside, outside).clamp(min=1e-300)
        total += float(values.where(sizes[own][:, 0] > 1, 0.0).sum())
    return total / len(points)
