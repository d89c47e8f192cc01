"""Curves through weight space: which points weigh how much at t, and a network anywhere on one."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Curve", "flatten", "linear_points", "point_weights"]

Shape = Literal["bezier", "polygonal"]


def point_weights(shape: Shape, points: int, t: float) -> Tensor:
    """How much each of n points weighs at ``t`` in [0, 1]: n numbers >= 0, whose sum is 1.

    ``bezier``: C(n−1, j) t^j (1−t)^(n−1−j). ``polygonal``: max(0, 1 − |t (n−1) − j|). At 0 and 1
    the first and last point weigh 1. Float64, so that the weights are exact there.
    """
    last = points - 1
    order = torch.arange(points, dtype=torch.float64)
    if shape == "polygonal":
        return (1 - (t * last - order).abs()).clamp(min=0)
    binomials = torch.tensor([math.comb(last, j) for j in range(points)], dtype=torch.float64)
    return binomials * t**order * (1 - t) ** (last - order)


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """All tensors as one vector, in their order."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors.values()])


def linear_points(start: Tensor, end: Tensor, points: int) -> Tensor:
    """n points at equal distances on the line from ``start`` to ``end``, both included: n x P."""
    share = torch.linspace(0, 1, points, dtype=start.dtype, device=start.device)[:, None]
    return torch.lerp(start[None], end[None], share)


class Curve(nn.Module):
    """A network whose weights are φ(t) = Σ_j c_j(t) θ_j; only the points in between are trained.

    Buffers are not interpolated: in train mode batch norm uses the batch's statistics, elsewhere
    they have to be estimated again at the t that is wanted.
    """

    start: Tensor
    end: Tensor
    _coefficients: Tensor

    def __init__(self, start: nn.Module, end: nn.Module, shape: Shape, points: int) -> None:
        super().__init__()
        self._network = copy.deepcopy(start).requires_grad_(False)
        self._shape: Shape = shape
        self._points = points
        # A weight that is shared between layers appears once.
        self._sizes = {
            name: value.shape
            for name, value in self._network.named_parameters()
            if value.is_floating_point()
        }
        first, last = (
            flatten({name: model.get_parameter(name) for name in self._sizes})
            for model in (start, end)
        )
        #: w₀ and w₁, as vectors of all P weights
        self.register_buffer("start", first)
        self.register_buffer("end", last)
        #: θ₁ ... θ_{n−2}, (n − 2) x P
        self.inner = nn.Parameter(linear_points(first, last, points)[1:-1].clone())
        self.register_buffer("_coefficients", self._coefficients_at(0.5))

    def move_to(self, t: float) -> None:
        """Let the next forward passes be at ``t``."""
        self._coefficients = self._coefficients_at(t)

    def weights(self) -> Tensor:
        """φ(t) as one vector; gradients flow to the points in between."""
        first, *inner, last = self._coefficients.unbind()
        total = first * self.start + last * self.end
        # Not a matrix product: autocast would do that in half precision.
        for coefficient, point in zip(inner, self.inner.unbind(), strict=True):
            total = total + coefficient * point
        return total

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x K) at the present t."""
        logits: Tensor = functional_call(self._network, self._named_weights(), (images,))
        return logits

    @torch.no_grad()
    def write(self, t: float, model: nn.Module) -> None:
        """Set the weights of ``model``, of the same architecture, to φ(t); buffers stay."""
        self.move_to(t)
        for name, weights in self._named_weights().items():
            model.get_parameter(name).copy_(weights)

    def _named_weights(self) -> dict[str, Tensor]:
        sizes = [size.numel() for size in self._sizes.values()]
        parts: tuple[Tensor, ...] = torch.split(self.weights(), sizes)
        return {
            name: part.view(size)
            for (name, size), part in zip(self._sizes.items(), parts, strict=True)
        }

    def _coefficients_at(self, t: float) -> Tensor:
        return point_weights(self._shape, self._points, t).to(self.start)
