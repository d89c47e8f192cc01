"""The score of a channel, and which scores are outliers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["can_have_outliers", "channel_norms", "outliers"]

#: relative: scores that differ by rounding alone are equal
_TOLERANCE = 1e-9


def channel_norms(weights: Sequence[Tensor], *, has_identity: bool, channels: int) -> Tensor:
    """Largest singular value σ_k of every output channel's kernel, float64 on the CPU, C.

    Kernel k is a matrix of C_in rows and k_h k_w columns. The branches of a residual sum are
    stacked along the rows, smaller kernels centred in the largest; an identity skip is a unit row.
    A channel with a non-finite weight has an infinite norm.

    σ_k ≤ ‖M_k‖_F ≤ norm of the convolution ≤ √(k_h k_w) σ_k, with equality for 1 x 1 kernels.

    Parameters
    ----------
    weights:
        C x C_in / groups x kernel size, one per branch; linear layers are C x C_in.

    """
    if not weights:
        return torch.ones(channels, dtype=torch.float64)
    kernels = [w.detach().to("cpu", torch.float64) for w in weights]
    kernels = [w[..., None] if w.ndim == 2 else w for w in kernels]
    sizes = [max(extents) for extents in zip(*(w.shape[2:] for w in kernels), strict=True)]
    if has_identity:
        kernels.append(torch.ones(channels, 1, *(1 for _ in sizes), dtype=torch.float64))
    stacked = torch.cat([_centred(w, sizes).flatten(2) for w in kernels], dim=1)
    is_finite = stacked.isfinite().flatten(1).all(1)
    stacked[~is_finite] = 0
    _, rows, columns = stacked.shape
    # The Gram matrix on the smaller side: one batched call, and its largest eigenvalue is σ².
    gram = stacked.mT @ stacked if columns <= rows else stacked @ stacked.mT
    norms: Tensor = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt()
    norms[~is_finite] = torch.inf
    return norms


def _centred(kernel: Tensor, sizes: Sequence[int]) -> Tensor:
    missing = [size - own for size, own in zip(sizes, kernel.shape[2:], strict=True)]
    padding = [side for gap in reversed(missing) for side in (gap // 2, gap - gap // 2)]
    return functional.pad(kernel, padding)


def outliers(scores: Tensor, threshold: float) -> Tensor:
    """Indices k with s_k > mean + u · std (unbiased), ascending; non-finite scores are left out."""
    is_finite = scores.isfinite()
    values = scores[is_finite]
    if len(values) < 2:
        return torch.empty(0, dtype=torch.int64)
    mean = values.mean()
    limit = torch.maximum(mean + threshold * values.std(), mean * (1 + _TOLERANCE))
    return (is_finite & (scores > limit)).nonzero().flatten()


def can_have_outliers(channels: int, threshold: float) -> bool:
    """Whether any of so many scores can exceed the threshold: at most (n - 1) / √n deviations."""
    return channels > 1 and (channels - 1) / math.sqrt(channels) > threshold
