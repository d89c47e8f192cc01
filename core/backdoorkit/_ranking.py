"""How well scores tell two groups apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["area_under_curve"]


def area_under_curve(positives: Tensor, negatives: Tensor) -> float | None:
    """AUROC: P(positive > negative) + ½ P(equal) of scores; None where either group is empty."""
    if not len(positives) or not len(negatives):
        return None
    ordered = negatives.sort().values
    below = torch.searchsorted(ordered, positives.contiguous())
    not_above = torch.searchsorted(ordered, positives.contiguous(), right=True)
    wins = (below + not_above).double().mean() / 2
    return float(wins) / len(negatives)
