"""The verdict that detector and defense share: reversed triggers and the outliers among them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.api import StructureError
from backdoorkit_nc._anomaly import (
    Anomaly,
    anomaly,
    family_wise_threshold,
    null_indices,
    p_value,
)
from backdoorkit_nc._inversion import Triggers, invert
from backdoorkit_nc._log_sizes import log_size_indices, null_scores

if TYPE_CHECKING:
    from torch import Tensor, nn

    from backdoorkit.api import Context, ImageSet, Structure
    from backdoorkit_nc import InversionOptions

__all__ = ["Verdict", "examine", "judge", "refuse_few_classes"]

_log = logging.getLogger(__name__)

#: with fewer classes the smallest norm is at most 0.67 deviations below the median
_FEWEST_CLASSES: Final = 3
#: with fewer, an outlier inflates its own yardstick
_ENOUGH_CLASSES: Final = 8


@attrs.frozen(kw_only=True, eq=False)
class Verdict:
    """What trigger inversion says about a model."""

    triggers: Triggers
    anomaly: Anomaly
    #: float64, K: index by which classes are judged if their trigger works
    indices: Tensor
    #: anomaly index of the model: that of its most anomalous class with a working trigger
    score: float
    #: sorted scores of clean models by theory
    null: Tensor
    #: index above which a class is flagged
    threshold: float
    false_alarm_rate: float
    #: classes above the threshold, the most anomalous first
    flagged: tuple[int, ...]

    def details(self) -> dict[str, Any]:
        """JSON-ready facts for the record."""
        triggers = self.triggers
        return {
            "flagged": list(self.flagged),
            "suspect": int(self.indices.where(triggers.converged, 0.0).argmax()),
            "anomaly_index": self.score,
            "threshold": self.threshold,
            "family_wise_threshold": family_wise_threshold(self.null, self.false_alarm_rate),
            "p_value": p_value(self.score, self.null),
            "norms": triggers.norms.tolist(),
            "median_norm": self.anomaly.median,
            "deviation": self.anomaly.deviation,
            "degenerate": self.anomaly.is_degenerate,
            "low_power": len(triggers.norms) < _ENOUGH_CLASSES,
            "reversed_success": triggers.success.tolist(),
            "not_converged": (~triggers.converged).nonzero().flatten().tolist(),
            "outer_steps": triggers.steps.tolist(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Masks (K x 1 x H x W) and patterns (K x C x H x W) of all classes, and their scores."""
        return {
            "masks": self.triggers.masks,
            "patterns": self.triggers.patterns,
            "norms": self.triggers.norms,
            "anomaly_indices": self.indices,
        }


def refuse_few_classes(structure: Structure) -> None:
    """Raise StructureError where no class could ever be flagged."""
    if structure.num_classes < _FEWEST_CLASSES:
        raise StructureError(
            f"nc compares classes with each other and needs at least {_FEWEST_CLASSES}, but "
            f"{structure.network} has {structure.num_classes}; of two norms neither is an outlier"
        )


def examine(
    model: nn.Module,
    clean: ImageSet,
    num_classes: int,
    options: InversionOptions,
    context: Context,
) -> Verdict:
    """Reverse a trigger for every class of ``model`` and flag those that are too small."""
    if num_classes < _ENOUGH_CLASSES:
        _log.warning(
            "nc: with %d classes an outlier hardly stands out; below %d, trust the norms rather "
            "than the verdict",
            num_classes,
            _ENOUGH_CLASSES,
        )
    triggers = invert(model, clean, range(num_classes), options, context)
    return judge(triggers, options)


def judge(triggers: Triggers, options: InversionOptions) -> Verdict:
    """Flag the classes with an anomalously small trigger that works.

    A mask that never worked says how far the optimiser came, not how large a trigger must be: it
    counts for the median but is never flagged.
    """
    found, classes = anomaly(triggers.norms), len(triggers.norms)
    by_logarithms = options.outliers == "log-sizes"
    indices = log_size_indices(triggers.norms) if by_logarithms else found.indices
    judged = indices.where(triggers.converged, 0.0)
    null = null_scores(classes) if by_logarithms else null_indices(classes)
    threshold = options.threshold
    if by_logarithms or options.threshold_rule == "family-wise":
        threshold = family_wise_threshold(null, options.false_alarm_rate)
    ranked = judged.argsort(descending=True, stable=True).tolist()
    return Verdict(
        triggers=triggers,
        anomaly=found,
        indices=indices,
        null=null,
        score=float(judged.max()),
        threshold=threshold,
        false_alarm_rate=options.false_alarm_rate,
        flagged=tuple(label for label in ranked if float(judged[label]) > threshold),
    )
