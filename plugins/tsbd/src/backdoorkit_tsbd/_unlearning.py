"""Unlearning as TSBD does it: ascent at a growing rate, in float32, stopped in eval mode."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import attrs

from backdoorkit.api import unlearn

if TYPE_CHECKING:
    from torch import nn

    from backdoorkit import TrainOptions
    from backdoorkit.api import Context, ImageSet, Unlearned

__all__ = ["ascent_options", "unlearn_to"]

_log = logging.getLogger(__name__)


def ascent_options(training: TrainOptions, rate: float, max_epochs: int) -> TrainOptions:
    """Options of unlearning: plain SGD; batches, momentum and augmentation are ``training``'s."""
    return attrs.evolve(
        training,
        epochs=max_epochs,
        optimizer="sgd",
        learning_rate=rate,
        schedule="constant",
        weight_decay=0.0,
        label_smoothing=0.0,
        precision="float32",  # rankings compare small changes
    )


def unlearn_to(
    stop_accuracy: float | None,
    model: nn.Module,
    data: ImageSet,
    options: TrainOptions,
    growth: float,
    context: Context,
) -> Unlearned:
    """θ_ul = argmax E[ℓ(f(x; θ), y)] over ``data``, in a copy, until accuracy on it is low enough.

    ``None`` never is: all epochs are run.
    """
    unlearned = unlearn(
        model,
        data,
        options,
        context,
        stop_accuracy=stop_accuracy,
        measured_on=data,
        growth=growth,
        advice=(
            f"lower unlearning_rate (now {options.learning_rate:g}) or unlearning_growth (now "
            f"{growth:g})"
        ),
    )
    if stop_accuracy is not None and unlearned.stop_reason != "accuracy":
        _log.warning(
            "%s: unlearning stopped after %d epochs at accuracy %.3f, above %.3f; raise "
            "max_epochs or unlearning_rate, or set unlearning_growth above 1",
            context.method,
            unlearned.epochs,
            unlearned.accuracy,
            stop_accuracy,
        )
    return unlearned
