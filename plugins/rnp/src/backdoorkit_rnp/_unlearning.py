"""Unlearning the clean task, and what the model still answers afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from backdoorkit.api import InputError, unlearn

if TYPE_CHECKING:
    from torch import Tensor, nn

    from backdoorkit.api import Context, ImageSet, Unlearned
    from backdoorkit_rnp import RNPConfig

__all__ = ["default_stop_accuracy", "majority_label", "unlearn_clean"]


def unlearn_clean(
    victim: nn.Module, reserve: ImageSet, config: RNPConfig, num_classes: int, context: Context
) -> Unlearned:
    """Maximise cross-entropy on ``reserve`` until an epoch's own accuracy is low, in a copy.

    Raises
    ------
    InputError
        where accuracy has not fallen to the stop accuracy after the last epoch: masks learnt on
        such a model would say nothing.

    """
    stop = config.stop_accuracy
    stop = default_stop_accuracy(num_classes) if stop is None else stop
    unlearned = unlearn(
        victim,
        reserve,
        config,
        context,
        stop_accuracy=stop,
        gradient_clip=config.gradient_clip,
        advice=f"lower learning_rate (now {config.learning_rate:g}) or set gradient_clip",
    )
    if unlearned.stop_reason != "accuracy":
        raise InputError(
            f"rnp: unlearning was to bring accuracy on the reserve down to {stop:.3f}, but after "
            f"{unlearned.epochs} epochs ({unlearned.gradient_steps} steps) it is "
            f"{unlearned.accuracy:.3f}; raise epochs (now {config.epochs}) or learning_rate (now "
            f"{config.learning_rate:g}), or lower batch_size (now {config.batch_size})"
        )
    return unlearned


def default_stop_accuracy(num_classes: int) -> float:
    """Twice chance, 2 / K; for two or three classes half way between chance and one."""
    return min(2 / num_classes, (1 + 1 / num_classes) / 2)


def majority_label(logits: Tensor) -> tuple[int, float]:
    """The class predicted most often (the lowest, on ties), and its share of the images.

    Of an unlearned model on clean images (logits N x K) it is the estimate of the target class.
    """
    counts = torch.bincount(logits.argmax(dim=1), minlength=logits.shape[1])
    label = int(counts.argmax())
    return label, int(counts[label]) / len(logits)
