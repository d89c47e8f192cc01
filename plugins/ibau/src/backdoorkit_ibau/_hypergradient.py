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
    only_shrinking: bool = False,
) -> tuple[Tensor, ...]:
    """d outer / dθ, where ``solution`` δ follows the parameters θ as a minimum of ``inner``.

    δ is the fixed point of Φ(δ, θ) = δ - η ∇_δ inner. With J = ∂Φ/∂δ and g = ∂outer/∂δ, the
    implicit function theorem gives

    ∂outer/∂θ + (∂Φ/∂θ)ᵀ v,    v = (I - Jᵀ)⁻¹ g = g + Jᵀg + (Jᵀ)²g + ...

    of which the first ``steps`` (K) terms are summed. The series converges where ``inner`` is
    strongly convex in δ and ``rate`` (η) is below 2 / its largest curvature; elsewhere its terms
    grow, and the last of them drown all others.

    Parameters
    ----------
    outer, inner:
        Scalars made from ``solution`` and ``parameters``; their graphs are used up.
    solution:
        δ, a leaf that requires a gradient.
    parameters:
        θ; one that has no part in either loss gets zeros.
    only_shrinking:
        End the sum before the first term that is not smaller than the one before it (not in the
        paper).

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
    v = term = g
    for _ in range(steps - 1):
        following = _next_term(term, slope, solution, rate)
        if only_shrinking:
            # Zeros from then on: looking whether there is anything to add would make a GPU wait.
            following = torch.where(following.norm() < term.norm(), following, 0)
        term = following
        v = v + term
    # (∂Φ/∂θ)ᵀ v = -η ∇_θ <∇_δ inner, v>
    response = torch.autograd.grad(slope, parameters, v, materialize_grads=True)
    return tuple(
        gradient - rate * change for gradient, change in zip(direct, response, strict=True)
    )


def _next_term(term: Tensor, slope: Tensor, solution: Tensor, rate: float) -> Tensor:
    """Jᵀu = u - η (∇² inner) u, from ``slope``, which is ∇_δ inner."""
    (curved,) = torch.autograd.grad(
        slope, solution, term, retain_graph=True, materialize_grads=True
    )
    return term - rate * curved
