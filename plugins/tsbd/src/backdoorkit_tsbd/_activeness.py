"""Stage 2: fine-tuning that also keeps the gradient's norm, the neurons' activeness, small."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from backdoorkit.api import TrainingHooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backdoorkit.api import Batch

__all__ = ["ActivenessAwareTuning"]

#: Norms below this are rounding noise (a bias before batch norm, a dead unit): not stepped along.
_SMALLEST_NORM = 1e-8


class ActivenessAwareTuning(TrainingHooks):
    """Steps along (1 − α) g₁ + α g₂, the gradient of cross-entropy + α r ‖g₁‖ up to O(r).

    g₁ is the gradient at θ and g₂ the one at θ + r g₁ / ‖g₁‖. With ``norm="tensor"`` every tensor
    is stepped by r along its own gradient: the penalty is then the sum of the tensors' norms.
    """

    def __init__(
        self, *, perturbation: float, blend: float, norm: Literal["tensor", "global"]
    ) -> None:
        self._perturbation = perturbation  # r
        self._blend = blend  # α
        self._norm = norm

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        loss = super().backward(model, batch, compute_loss)
        if self._blend == 0:
            return loss
        parameters: list[Tensor] = [p for p in model.parameters() if p.grad is not None]
        first = _take_gradients(parameters)
        with _perturbed(parameters, self._steps(first)), _statistics_kept(model):
            super().backward(model, batch, compute_loss)
        # A branch without a second gradient (one that was skipped by chance) keeps its first.
        second = [g if p.grad is None else p.grad for p, g in zip(parameters, first, strict=True)]
        blended = torch._foreach_lerp(first, second, self._blend)
        for parameter, gradient in zip(parameters, blended, strict=True):
            parameter.grad = gradient
        return loss

    def _steps(self, gradients: list[Tensor]) -> list[Tensor]:
        """r g / ‖g‖ for each tensor, zero where ‖g‖ (almost) is; never waits for the device."""
        norms = torch.stack(torch._foreach_norm(gradients))
        if self._norm == "global":
            norms = torch.linalg.vector_norm(norms).expand_as(norms)
        scales = torch.where(norms < _SMALLEST_NORM, 0.0, self._perturbation / norms)
        return list(torch._foreach_mul(gradients, list(scales.unbind())))


def _take_gradients(parameters: list[Tensor]) -> list[Tensor]:
    """The parameters' gradients, which they have no more afterwards."""
    gradients = []
    for parameter in parameters:
        assert parameter.grad is not None
        gradients.append(parameter.grad)
        parameter.grad = None
    return gradients


@contextmanager
def _perturbed(parameters: list[Tensor], steps: list[Tensor]) -> Iterator[None]:
    """Inside, weights are moved by ``steps``; afterwards they are bit for bit what they were."""
    with torch.no_grad():
        kept = [parameter.clone() for parameter in parameters]
        torch._foreach_add_(parameters, steps)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, kept)


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm normalises by the batch as before but leaves its running statistics alone.

    The statistics of a perturbed model are not the model's.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
