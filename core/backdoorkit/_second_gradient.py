"""Training along a second gradient, taken a little way uphill from the weights."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import Tensor, nn

from backdoorkit._training_hooks import TrainingHooks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backdoorkit.data.batches import Batch

__all__ = ["SecondGradient"]

#: Norms below this are rounding noise (a bias before batch norm, a dead unit): not stepped along.
_SMALLEST_NORM: Final = 1e-8


class SecondGradient(TrainingHooks):
    """Steps along (1 − α) g₁ + α g₂, from the weights θ as they were.

    g₁ is the gradient at θ and g₂ the one at θ + r g₁ / ‖g₁‖: with α = 1 the step of
    sharpness-aware minimisation (Foret et al., ICLR 2021, eq. 2 and 3), with less a penalty on the
    gradient's norm. Batch norm's running statistics follow the first pass alone. A radius or a
    blend of zero is plain training, bit for bit and at its cost.

    Parameters
    ----------
    radius:
        r (in sharpness-aware minimisation ρ), the length of the step uphill.
    blend:
        α in [0, 1], the share of the second gradient.
    norm:
        What the step is divided by: the norm of all gradients together (``"global"``), or each
        tensor's own (``"tensor"``), so that every tensor is moved by r.

    """

    def __init__(
        self, *, radius: float, blend: float = 1.0, norm: Literal["global", "tensor"] = "global"
    ) -> None:
        self._radius = radius
        self._blend = blend
        self._norm = norm

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        loss = super().backward(model, batch, compute_loss)
        if self._radius == 0 or self._blend == 0:
            return loss
        parameters: list[Tensor] = [p for p in model.parameters() if p.grad is not None]
        first = _take_gradients(parameters)
        with _moved(parameters, self._steps(first)), _statistics_kept(model):
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
        scales = torch.where(norms < _SMALLEST_NORM, 0.0, self._radius / norms)
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
def _moved(parameters: list[Tensor], steps: list[Tensor]) -> Iterator[None]:
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

    The statistics of a moved model are not the model's. Norms in eval mode do not follow batches.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        and module.training
        and module.track_running_stats
    ]
    kept = [(norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = None  # instance norm asks for nothing else
    try:
        yield
    finally:
        for norm, (mean, variance) in zip(norms, kept, strict=True):
            norm.track_running_stats = True
            norm.running_mean, norm.running_var = mean, variance
