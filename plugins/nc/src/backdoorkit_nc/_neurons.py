"""Penultimate units that a reversed trigger excites: to watch them, or to remove them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import torch
from torch import Tensor

from backdoorkit.api import InputError, StructureError, batches
from backdoorkit_nc._inversion import images_at_once, stamp

if TYPE_CHECKING:
    from torch import nn

    from backdoorkit.api import Context, ImageSet, Structure

__all__ = [
    "InputFilter",
    "excitation",
    "fit_filter",
    "head_pass",
    "other_classes",
    "predictions_without",
    "refuse_other_head",
    "units_to_prune",
]


@torch.inference_mode()
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
    features, logits = [], []
    for batch in batches(data, images_at_once(data.shape, context.device), device=context.device):
        images = batch.images
        if trigger is not None:
            images = stamp(images, *(part.to(images.device) for part in trigger))
        entering, leaving = structure.features_and_logits(model, images)
        features.append(entering.float().cpu())
        logits.append(leaving.float().cpu())
    return torch.cat(features), torch.cat(logits)


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


@attrs.frozen(kw_only=True, eq=False)
class InputFilter:
    """Rejects inputs that excite the trigger's units more than almost all clean ones do."""

    #: int64: penultimate units that are watched
    units: Tensor
    #: score above which an input is rejected
    threshold: float

    def score(self, features: Tensor) -> Tensor:
        """Mean activation of the watched units (N) of penultimate features (N x d)."""
        return features[:, self.units].mean(dim=1)

    def rejects(self, features: Tensor) -> Tensor:
        """Which inputs (bool, N) are taken for triggered."""
        return self.score(features) > self.threshold


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


def predictions_without(features: Tensor, logits: Tensor, weight: Tensor, units: Tensor) -> Tensor:
    """Predicted classes (n + 1, N) with the first 0, 1, ..., n of ``units`` removed.

    Removing a unit takes the product of its feature with its column of the head's ``weight``
    (K x d) off the logits, so one forward pass serves all levels.
    """
    features, logits, weight = features.double(), logits.double().clone(), weight.double()
    predicted = [logits.argmax(dim=1)]
    for unit in units.tolist():
        logits -= torch.outer(features[:, unit], weight[:, unit])
        predicted.append(logits.argmax(dim=1))
    return torch.stack(predicted)


def refuse_other_head(features: Tensor, logits: Tensor, head: nn.Linear) -> None:
    """Raise StructureError where the logits are not ``head`` of the features (pooled since)."""
    with torch.no_grad():
        expected = head(features.to(head.weight.device)).cpu()
    if not torch.allclose(expected, logits, rtol=1e-2, atol=1e-2):
        raise StructureError(
            "nc removes units at the last linear layer, but here the logits are not what that "
            "layer gives of its mean input; choose repair = 'unlearning'"
        )


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
