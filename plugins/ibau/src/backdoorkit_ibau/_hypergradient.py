"""The gradient of an outer loss through the solution of an inner problem."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["hypergradient"]


def hypergradient(
    outer: Tensor,
    inner: Tensor,
    solution: Tensor,
    parameters: Sequence[Tensor],
    *,
    steps: int,
    rate: float,
) -> tuple[Tensor, ...]:
    """d outer / dθ, where ``solution`` δ follows the parameters θ as a minimum of ``inner``.

    δ is the fixed point of Φ(δ, θ) = δ - η ∇_δ inner. With J = ∂Φ/∂δ and g = ∂outer/∂δ, the
    implicit function theorem gives

    ∂outer/∂θ + (∂Φ/∂θ)ᵀ v,    v = (I - Jᵀ)⁻¹ g = g + Jᵀg + (Jᵀ)²g + ...

    of which the first ``steps`` (K) terms are summed. The series converges where ``inner`` is
    strongly convex in δ and ``rate`` (η) is below 2 / its largest curvature; elsewhere K must be
    small.

    Parameters
    ----------
    outer, inner:
        Scalars made from ``solution`` and ``parameters``; their graphs are used up.
    solution:
        δ, a leaf that requires a gradient.
    parameters:
        θ; one that has no part in either loss gets zeros.

    Returns
    -------
    tuple of Tensor
        One gradient per parameter, detached.

    Raises
    ------
    RuntimeError
        where ``inner`` cannot be differentiated twice.

    """
    g, *direct = torch.autograd.grad(outer, [solution, *parameters], materialize_grads=True)
    (slope,) = torch.autograd.grad(inner, solution, create_graph=True, materialize_grads=True)
    v = g
    for _ in range(steps - 1):  # v ← g + Jᵀv, where Jᵀv = v - η (∇² inner) v
        (curved,) = torch.autograd.grad(
            slope, solution, v, retain_graph=True, materialize_grads=True
        )
        v = g + v - rate * curved
    # (∂Φ/∂θ)ᵀ v = -η ∇_θ <∇_δ inner, v>
    response = torch.autograd.grad(slope, parameters, v, materialize_grads=True)
    return tuple(
        gradient - rate * change for gradient, change in zip(direct, response, strict=True)
    )
