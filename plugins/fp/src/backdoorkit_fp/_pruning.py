"""Penultimate units: their clean activations, and what removing them in an order costs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from backdoorkit.api import predictions_without

if TYPE_CHECKING:
    from backdoorkit.api import Context, ImageSet

__all__ = [
    "accuracy_sweep",
    "columns_per_unit",
    "levels",
    "pruned_columns",
    "unit_activations",
]


def columns_per_unit(model: nn.Module, head: nn.Linear, data: ImageSet, context: Context) -> int:
    """How many consecutive columns of ``head`` one unit owns.

    It is 1 behind global pooling, a hidden linear layer or a class token, and h * w where the last
    feature map (C x h x w) is flattened.
    """
    channels = 0

    def record(module: nn.Module, _: object, output: object) -> None:
        nonlocal channels
        if isinstance(output, Tensor) and output.ndim == 4:
            channels = output.shape[1]
        elif isinstance(module, nn.Linear) and module is not head:
            channels = 0  # what a linear layer has mixed belongs to no channel

    handles = [module.register_forward_hook(record) for module in model.modules()]
    try:
        context.predict(model, data.subset(torch.arange(1)))
    finally:
        for handle in handles:
            handle.remove()
    is_flattened = channels > 0 and head.in_features % channels == 0
    return head.in_features // channels if is_flattened else 1


def unit_activations(features: Tensor, columns: int, statistic: str) -> tuple[Tensor, str]:
    """Clean activation of each unit (float64, units) and the statistic used.

    ``auto`` is the mean where no feature is negative (behind a ReLU), else the mean absolute value:
    a signed feature can be strong and still average to zero.
    """
    if statistic == "auto":
        statistic = "mean" if bool((features >= 0).all()) else "abs"
    values = features.abs() if statistic == "abs" else features
    return values.double().mean(dim=0).reshape(-1, columns).mean(dim=1), statistic


def levels(units: int, step: float) -> range:
    """Numbers of pruned units that are tried: 0, s, 2s, ..., and never all units."""
    return range(0, units, math.ceil(step * units))


def pruned_columns(order: Tensor, count: int, columns: int) -> Tensor:
    """Mask (bool, d) of the head's columns that the first ``count`` units of ``order`` own."""
    pruned = torch.zeros(len(order), dtype=torch.bool)
    pruned[order[:count]] = True
    return pruned.repeat_interleave(columns)


def accuracy_sweep(
    features: Tensor, logits: Tensor, labels: Tensor, weight: Tensor, order: Tensor, columns: int
) -> Tensor:
    """Accuracy with the first n units of ``order`` removed, for n = 0, 1, ..., all (float64)."""
    labels = labels.cpu()
    levels = predictions_without(features, logits, weight, order, columns=columns)
    return torch.stack([(predicted == labels).double().mean() for predicted in levels])
