"""Penultimate units that a reversed trigger excites: to watch them, or to remove them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backdoorkit.api import InputError, collect_features
from backdoorkit_nc._inversion import stamp
from backdoorkit_nc.filters import InputFilter

if TYPE_CHECKING:
    from torch import nn

    from backdoorkit.api import Context, ImageSet, Structure

__all__ = [
    "excitation",
    "fit_filter",
    "head_pass",
    "other_classes",
    "units_to_prune",
]


def head_pass(
    model: nn.Module,
    structure: Structure,
    data: ImageSet,
    context: Context,
    trigger: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Penultimate features (float32, N x d) and logits (N x K), on the CPU.

    ``trigger`` is a mask and a pattern that all images are stamped with first.
    """
    if trigger is None:
        return collect_features(model, structure, data, context)
    mask, pattern = (part.to(context.device) for part in trigger)
    return collect_features(
        model, structure, data, context, change=lambda images: stamp(images, mask, pattern)
    )


def other_classes(data: ImageSet, label: int) -> ImageSet:
    """The images that a trigger of class ``label`` has something to do on."""
    positions = (data.labels != label).nonzero().flatten()
    if not len(positions):
        raise InputError(
            f"nc needs clean images of other classes than the flagged class {label}, but the "
            "reserve has none; enlarge the reserve"
        )
    return data.subset(positions)


def excitation(clean: Tensor, triggered: Tensor) -> Tensor:
    """d: mean change of each unit (float64) by the trigger; features are N x d."""
    return triggered.double().mean(dim=0) - clean.double().mean(dim=0)


# -- watching --------------------------------------------------------------------------------------


def fit_filter(
    clean: Tensor, change: Tensor, *, share: float, false_positives: float
) -> InputFilter:
    """A filter on the ``share`` of units (at least one) with the largest ``change``.

    Its threshold is the quantile of the scores of ``clean`` (N x d features) that rejects
    ``false_positives`` of them.
    """
    count = max(1, math.ceil(share * len(change)))
    units = change.argsort(descending=True, stable=True)[:count]
    scores = clean[:, units].mean(dim=1)
    return InputFilter(
        units=units, threshold=float(torch.quantile(scores.double(), 1 - false_positives))
    )


# -- removing --------------------------------------------------------------------------------------


def units_to_prune(
    accuracies: Tensor, successes: Tensor, *, tolerance: float, stop: float
) -> tuple[int, str]:
    """How many units to remove, and what ended the search.

    Both are given for 0, 1, ... removed units: clean accuracy, and the reversed triggers' success.
    """
    floor = float(accuracies[0]) - tolerance
    pairs = zip(accuracies.tolist(), successes.tolist(), strict=True)
    for count, (accuracy, success) in enumerate(pairs):
        if accuracy < floor:
            return count - 1, "accuracy"
        if success <= stop:
            return count, "trigger-removed"
    return len(accuracies) - 1, "largest-share"
