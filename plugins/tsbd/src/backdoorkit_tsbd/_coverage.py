"""How many of the neurons that the trigger moves most a ranking finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["coverage", "top_count"]


def top_count(ratio: float, neurons: int) -> int:
    """Size of the top ``ratio`` of ``neurons``: rounded half up, at least one."""
    return max(1, int(ratio * neurons + 0.5))


def coverage(scores: Tensor, change: Tensor, ratio: float) -> float | None:
    """|top(scores) ∩ top(change)| / |top(change)| for the top ``ratio`` of n neurons.

    A random ranking has the ratio itself. None where the trigger changes all neurons equally, or
    not at all; of equal scores, the first neurons count as higher.
    """
    if change.max() == change.min():
        return None
    count = top_count(ratio, len(change))
    first, second = (
        values.argsort(descending=True, stable=True)[:count] for values in (scores, change)
    )
    return float(torch.isin(first, second).double().mean())
