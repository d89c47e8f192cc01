"""The verdict that detector and defense share: reversed triggers and the outliers among them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.api import StructureError
from backdoorkit_nc._anomaly import Anomaly, anomaly, family_wise_threshold, p_value
from backdoorkit_nc._inversion import Triggers, invert

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
    #: anomaly index of the model: that of its most anomalous class with a working trigger
    score: float
    #: index above which a class is flagged
    threshold: float
    false_alarm_rate: float
    #: classes above the threshold, the most anomalous first
    flagged: tuple[int, ...]

    def details(self) -> dict[str, Any]:
        """JSON-ready facts for the record."""
        triggers, classes = self.triggers, len(self.triggers.norms)
        return {
            "flagged": list(self.flagged),
            "suspect": int(self.anomaly.indices.where(triggers.converged, 0.0).argmax()),
            "anomaly_index": self.score,
            "threshold": self.threshold,
            "family_wise_threshold": family_wise_threshold(classes, self.false_alarm_rate),
            "p_value": p_value(self.score, classes),
            "norms": triggers.norms.tolist(),
            "median_norm": self.anomaly.median,
            "deviation": self.anomaly.deviation,
            "degenerate": self.anomaly.is_degenerate,
            "low_power": classes < _ENOUGH_CLASSES,
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
            "anomaly_indices": self.anomaly.indices,
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
    found = anomaly(triggers.norms)
    indices = found.indices.where(triggers.converged, 0.0)
    threshold = options.threshold
    if options.threshold_rule == "family-wise":
        threshold = family_wise_threshold(len(indices), options.false_alarm_rate)
    ranked = indices.argsort(descending=True, stable=True).tolist()
    return Verdict(
        triggers=triggers,
        anomaly=found,
        score=float(indices.max()),
        threshold=threshold,
        false_alarm_rate=options.false_alarm_rate,
        flagged=tuple(label for label in ranked if float(indices[label]) > threshold),
    )
