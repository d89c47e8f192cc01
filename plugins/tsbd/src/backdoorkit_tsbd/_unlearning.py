"""Clean unlearning: gradient ascent on the reserve until the model knows no more than chance."""

from __future__ import annotations

import copy
import logging
import math
from typing import TYPE_CHECKING

import attrs
import torch
from torch import nn
from torch.nn import functional

from backdoorkit.api import ContractError, TrainingHooks

if TYPE_CHECKING:
    from torch import Tensor

    from backdoorkit.api import Batch, Context, EpochMetrics, ImageSet
    from backdoorkit_tsbd import TSBDConfig

__all__ = ["CleanUnlearning", "Unlearned", "chance", "unlearn"]

_log = logging.getLogger(__name__)

#: The learning rate does not grow beyond this.
_LARGEST_RATE = 1.0


@attrs.frozen(kw_only=True, eq=False)
class Unlearned:
    """θ_ul and how it was reached."""

    model: nn.Module
    epochs: int
    #: on the reserve, in [0, 1]
    accuracy: float
    #: of the last epoch
    learning_rate: float
    #: "accuracy" (fell to the stop accuracy) or "max-epochs"
    stop_reason: str


def unlearn(
    victim: nn.Module, reserve: ImageSet, config: TSBDConfig, context: Context
) -> Unlearned:
    """Maximise cross-entropy on ``reserve`` from the victim's weights, in a copy."""
    stop_accuracy = chance(reserve) if config.stop_accuracy is None else config.stop_accuracy
    hooks = CleanUnlearning(context, reserve, config, stop_accuracy)
    options = attrs.evolve(
        config,
        epochs=config.max_epochs,
        optimizer="sgd",
        learning_rate=config.unlearning_rate,
        schedule="constant",
        weight_decay=0.0,
        label_smoothing=0.0,
        precision="float32",  # the ranking compares small changes
    )
    model = copy.deepcopy(victim)
    epochs = context.fit(model, reserve, options, hooks=hooks).epochs_run
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise ContractError(
            f"tsbd: unlearning diverged in epoch {epochs}; lower unlearning_rate (now "
            f"{config.unlearning_rate:g}) or unlearning_growth (now {config.unlearning_growth:g})"
        )
    accuracy = hooks.accuracy if epochs else context.accuracy(model, reserve)
    reached = accuracy <= stop_accuracy
    if not reached:
        _log.warning(
            "tsbd: unlearning stopped after %d epochs at accuracy %.3f, above %.3f; raise "
            "max_epochs or unlearning_rate, or set unlearning_growth above 1",
            epochs,
            accuracy,
            stop_accuracy,
        )
    return Unlearned(
        model=model,
        epochs=epochs,
        accuracy=accuracy,
        learning_rate=hooks.learning_rate(max(epochs - 1, 0)),
        stop_reason="accuracy" if reached else "max-epochs",
    )


def chance(reserve: ImageSet) -> float:
    """Accuracy of always naming the largest class: 1 / K where all classes are equally large.

    Unlearning often ends in one answer for everything. With 21 of 200 images in that class, a stop
    at exactly 1 / 10 would miss the end, and the ascent would go on until the loss is infinite.
    """
    sizes = torch.bincount(reserve.labels)
    return float(sizes.max() / sizes.sum())


class CleanUnlearning(TrainingHooks):
    """Gradient ascent that ends when accuracy in eval mode is down to ``stop_accuracy``."""

    accuracy = math.nan

    def __init__(
        self, context: Context, reserve: ImageSet, config: TSBDConfig, stop_accuracy: float
    ) -> None:
        self._context = context
        self._reserve = reserve
        self._rate = config.unlearning_rate
        self._growth = config.unlearning_growth
        self._stop_accuracy = stop_accuracy

    def learning_rate(self, epoch: int) -> float:
        """Learning rate of ``epoch`` (from 0): it grows by a constant factor up to a ceiling."""
        ceiling = max(0.0, math.log(_LARGEST_RATE / self._rate))
        return self._rate * math.exp(min(epoch * math.log(self._growth), ceiling))

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        # For SGD without weight decay, scaling the loss is scaling the learning rate.
        scale = self.learning_rate(epoch) / self._rate
        return -scale * functional.cross_entropy(logits, batch.labels)

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        del epoch, metrics
        self.accuracy = self._context.accuracy(model, self._reserve)
        return self.accuracy <= self._stop_accuracy
