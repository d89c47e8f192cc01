"""How the curve is trained: one t per step, and a penalty on the weights there."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from backdoorkit.api import TrainingHooks

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Generator, Tensor, nn

    from backdoorkit.api import Batch
    from backdoorkit_mcr._curve import Curve

__all__ = ["CurveTraining", "late_decay"]


def late_decay(progress: float) -> float:
    """Factor on the learning rate after the share ``progress`` of all epochs, in [0, 1].

    1 up to a half, from there linear to 0.01 at nine tenths, then 0.01.
    """
    if progress <= 0.5:
        return 1.0
    if progress <= 0.9:
        return 1.0 - (progress - 0.5) / 0.4 * 0.99
    return 0.01


class CurveTraining(TrainingHooks):
    """E over t ~ U(0, 1) of the cross-entropy at φ(t) + ½ λ ‖φ(t)‖²; one t for each batch.

    Where it ``accumulates``, a step follows the sum of all gradients since the first step.
    """

    def __init__(
        self,
        curve: Curve,
        *,
        penalty: float,
        decays_late: bool,
        generator: Generator,
        accumulates: bool = False,
    ) -> None:
        self._curve = curve
        self._penalty = penalty  # λ
        self._decays_late = decays_late
        self._generator = generator
        self._factor = 1.0
        self._sum = torch.zeros_like(curve.inner) if accumulates else None

    def transform_batch(self, batch: Batch, epoch: int) -> Batch:
        self._curve.move_to(float(torch.rand((), generator=self._generator)))
        self._factor = late_decay(epoch / self.options.epochs) if self._decays_late else 1.0
        return batch

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        loss = super().loss(logits, batch, epoch)
        if self._penalty == 0:
            return loss
        return loss + 0.5 * self._penalty * self._curve.weights().square().sum()

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        loss = super().backward(model, batch, compute_loss)
        gradient = cast("Tensor", self._curve.inner.grad)
        if self._sum is not None:
            gradient.copy_(self._sum.add_(gradient))
        # Momentum apart, a smaller gradient is a smaller learning rate, which the loop owns.
        gradient.mul_(self._factor)
        return loss
