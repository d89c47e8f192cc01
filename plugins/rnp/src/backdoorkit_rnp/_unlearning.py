"""Unlearning the clean task by gradient ascent, and what the model still answers afterwards."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import attrs
import torch
from torch import nn

from backdoorkit.api import InputError, TrainingHooks

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from backdoorkit.api import Batch, Context, EpochMetrics, ImageSet
    from backdoorkit_rnp import RNPConfig

__all__ = ["CleanUnlearning", "Unlearned", "default_stop_accuracy", "majority_label", "unlearn"]


@attrs.frozen(kw_only=True, eq=False)
class Unlearned:
    """A model that has forgotten the clean task, and how it came to that."""

    model: nn.Module
    epochs: int
    #: of the last epoch, measured while it trained, in [0, 1]
    accuracy: float


def unlearn(
    victim: nn.Module, reserve: ImageSet, config: RNPConfig, num_classes: int, context: Context
) -> Unlearned:
    """Maximise cross-entropy on ``reserve`` from the victim's weights, in a copy.

    Raises
    ------
    InputError
        where accuracy has not fallen to the stop accuracy after the last epoch: masks learnt on
        such a model would say nothing.

    """
    stop = config.stop_accuracy
    stop = default_stop_accuracy(num_classes) if stop is None else stop
    model = copy.deepcopy(victim)
    hooks = CleanUnlearning(stop, config.gradient_clip)
    summary = context.fit(model, reserve, config, hooks=hooks)
    accuracy = summary.history[-1].accuracy if summary.history else 1.0
    if not accuracy <= stop:
        raise InputError(
            f"rnp: unlearning was to bring accuracy on the reserve down to {stop:.3f}, but after "
            f"{summary.epochs_run} epochs ({summary.gradient_steps} steps) it is {accuracy:.3f}; "
            f"raise epochs (now {config.epochs}) or learning_rate (now "
            f"{config.learning_rate:g}), or lower batch_size (now {config.batch_size})"
        )
    return Unlearned(model=model.eval(), epochs=summary.epochs_run, accuracy=accuracy)


def default_stop_accuracy(num_classes: int) -> float:
    """Twice chance, 2 / K; for two or three classes half way between chance and one."""
    return min(2 / num_classes, (1 + 1 / num_classes) / 2)


class CleanUnlearning(TrainingHooks):
    """Gradient ascent that ends with the first epoch of accuracy at most ``stop_accuracy``."""

    def __init__(self, stop_accuracy: float, gradient_clip: float | None) -> None:
        self._stop_accuracy = stop_accuracy
        self._gradient_clip = gradient_clip

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        return -super().loss(logits, batch, epoch)

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        loss = super().backward(model, batch, compute_loss)
        if self._gradient_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self._gradient_clip)
        return loss

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        del model, epoch
        return metrics.accuracy <= self._stop_accuracy


def majority_label(logits: Tensor) -> tuple[int, float]:
    """The class predicted most often (the lowest, on ties), and its share of the images.

    Of an unlearned model on clean images (logits N x K) it is the estimate of the target class.
    """
    counts = torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1])
    label = int(counts.argmax())
    return label, int(counts[label]) / len(logits)
