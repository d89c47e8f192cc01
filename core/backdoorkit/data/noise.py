"""Noise that belongs to a sample: the same in every batch, order and device."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["uniform_by_sample"]

_LOW_32_BITS: Final = 0xFFFFFFFF
_GOLDEN_RATIO: Final = 0x9E3779B9  # 2^32 / φ: consecutive counters land far apart


def uniform_by_sample(ids: Tensor, shape: tuple[int, ...], key: int, stream: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) that follow from each sample's id alone, float32, N x ``shape``.

    A hash of counters in place of a generator, whose numbers would depend on who shares a batch.

    Parameters
    ----------
    ids:
        int64, N: stable ids of the samples.
    shape:
        Of one sample's noise.
    key, stream:
        Below 2^31; they tell independent noises apart, such as those of two seeds or two epochs.

    """
    count = 1
    for size in shape:
        count *= size
    start = _hash(_hash(_hash(ids) ^ key) + stream)
    counters = torch.arange(count, device=ids.device) * _GOLDEN_RATIO
    words = _hash(start[:, None] + counters)
    # 24 bits fit a float32 exactly.
    return (words >> 8).float().mul_(2.0**-24).view(len(ids), *shape)


def _hash(values: Tensor) -> Tensor:
    """A well-mixed 32-bit hash in int64; the multipliers stay below 2^31, so nothing overflows."""
    values = values & _LOW_32_BITS
    for shift, multiplier in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        values = ((values ^ (values >> shift)) * multiplier) & _LOW_32_BITS
    return values ^ (values >> 15)
