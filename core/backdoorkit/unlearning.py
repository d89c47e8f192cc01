"""Unlearning: gradient ascent on cross-entropy, in a private copy, until accuracy is low enough."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Final, Literal

import attrs
import torch
from torch import nn

from backdoorkit._training_hooks import TrainingHooks
from backdoorkit.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from backdoorkit._training_hooks import EpochMetrics
    from backdoorkit.context import Context
    from backdoorkit.data.batches import Batch
    from backdoorkit.data.images import ImageSet
    from backdoorkit.hooks.shared_options import TrainOptions

__all__ = ["Unlearned", "Unlearning", "chance", "grown_rate", "unlearn"]

#: The learning rate does not grow beyond this.
_LARGEST_RATE: Final = 1.0


@attrs.frozen(kw_only=True, eq=False)
class Unlearned:
    """A model that has forgotten, and how it came to that."""

    #: in eval mode
    model: nn.Module
    epochs: int
    gradient_steps: int
    #: in [0, 1], measured as it was asked for; after no epoch, that of the model before
    accuracy: float
    #: of the last epoch, growth included
    learning_rate: float
    #: "accuracy" (it fell to the stop accuracy) or "max-epochs"
    stop_reason: Literal["accuracy", "max-epochs"]


def chance(data: ImageSet) -> float:
    """Accuracy of always naming the largest class: 1 / K where all classes are equally large.

    Unlearning often ends in one answer for everything. With 21 of 200 images in that class, a stop
    at exactly 1 / 10 would miss the end, and the ascent would go on until the loss is infinite.
    """
    sizes = torch.bincount(data.labels)
    return float(sizes.max() / sizes.sum())


def unlearn(
    model: nn.Module,
    data: ImageSet,
    options: TrainOptions,
    context: Context,
    *,
    stop_accuracy: float | None,
    measured_on: ImageSet | None = None,
    growth: float = 1.0,
    gradient_clip: float | None = None,
    advice: str = "lower the learning rate",
) -> Unlearned:
    """Maximise cross-entropy on ``data`` from the weights of ``model``, in a copy.

    Parameters
    ----------
    options:
        Of the training loop; ``epochs`` is the most there may be.
    stop_accuracy:
        In [0, 1]: unlearning ends with the first epoch whose accuracy is not above it; None is
        never.
    measured_on:
        Images on which accuracy is measured after every epoch, in eval mode. None takes the running
        accuracy of the epoch itself instead: in train mode, on augmented images, before each step.
    growth:
        Factor on the learning rate from epoch to epoch, up to a rate of 1.
    gradient_clip:
        Largest norm of the gradient, growth included; None does not clip.
    advice:
        What to do where weights become infinite, for the message.

    Raises
    ------
    ContractError
        where weights or losses are no longer finite, or growth is asked for beside a schedule, an
        optimizer or a weight decay that it does not go with.

    """
    if growth != 1:
        _require_plain_steps(options)
    copied = copy.deepcopy(model)
    measure = None if measured_on is None else lambda: context.accuracy(copied, measured_on)
    hooks = Unlearning(stop_accuracy, measure, growth=growth, gradient_clip=gradient_clip)
    summary = context.fit(copied, data, options, hooks=hooks)
    _require_finite(copied, f"{context.method}: unlearning", summary.epochs_run, advice)
    last = max(summary.epochs_run - 1, 0)
    if not summary.epochs_run:
        hooks.accuracy = context.accuracy(copied, data if measured_on is None else measured_on)
    return Unlearned(
        model=copied.eval(),
        epochs=summary.epochs_run,
        gradient_steps=summary.gradient_steps,
        accuracy=hooks.accuracy,
        learning_rate=(
            summary.history[-1].learning_rate
            if growth == 1 and summary.history
            else grown_rate(options.learning_rate, growth, last)
        ),
        stop_reason="accuracy" if hooks.is_low_enough() else "max-epochs",
    )


def _require_finite(model: nn.Module, what: str, epoch: int, advice: str) -> None:
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise ContractError(f"{what} diverged in epoch {epoch}; {advice}")


def _require_plain_steps(options: TrainOptions) -> None:
    """Growth scales the loss, which is the rate's own scale for no other steps than these."""
    if options.optimizer != "sgd" or options.schedule != "constant" or options.weight_decay:
        raise ContractError(
            "growth of the learning rate is for SGD at a constant rate without weight decay, not "
            f"{options.optimizer}, {options.schedule}, {options.weight_decay:g}"
        )


def grown_rate(rate: float, growth: float, epoch: int) -> float:
    """Learning rate of ``epoch`` (from 0), which grows by a constant factor up to a ceiling."""
    if growth == 1:
        return rate
    ceiling = max(0.0, math.log(_LARGEST_RATE / rate))
    return rate * math.exp(min(epoch * math.log(growth), ceiling))


class Unlearning(TrainingHooks):
    """Gradient ascent that ends when accuracy is down to ``stop_accuracy``.

    ``measure`` gives the accuracy after an epoch; None takes what the epoch measured itself.
    """

    #: after the last epoch, in [0, 1]
    accuracy = math.nan

    def __init__(
        self,
        stop_accuracy: float | None,
        measure: Callable[[], float] | None,
        *,
        growth: float = 1.0,
        gradient_clip: float | None = None,
    ) -> None:
        self._stop_accuracy = stop_accuracy
        self.ends_early = stop_accuracy is not None
        self._measure = measure
        self._growth = growth
        self._gradient_clip = gradient_clip

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        return -self._scale(epoch) * super().loss(logits, batch, epoch)

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        loss = super().backward(model, batch, compute_loss)
        if self._gradient_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self._gradient_clip)
        return loss

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        del model, epoch
        self.accuracy = metrics.accuracy if self._measure is None else self._measure()
        return self.is_low_enough()

    def is_low_enough(self) -> bool:
        """Whether accuracy has come down to where unlearning ends."""
        return self._stop_accuracy is not None and self.accuracy <= self._stop_accuracy

    def _scale(self, epoch: int) -> float:
        # For SGD without weight decay, scaling the loss is scaling the learning rate.
        rate = self.options.learning_rate
        return 1.0 if self._growth == 1 else grown_rate(rate, self._growth, epoch) / rate
