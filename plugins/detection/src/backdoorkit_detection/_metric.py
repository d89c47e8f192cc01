"""One set of columns, whether models, training samples or inputs were judged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backdoorkit.api import DetectionMetric, MetricValue, area_under_curve
from backdoorkit_detection import DetectionConfig
from backdoorkit_detection._intervals import (
    bootstrap,
    delong,
    newcombe,
    order_statistics,
    wilson,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backdoorkit.api import DetectionScores

__all__ = ["DetectionQuality"]

#: what is positive, and what is not
_GROUPS = {
    "models": ("attacked models", "clean models"),
    "training samples": ("poisoned samples", "other samples"),
    "inputs": ("triggered inputs", "clean inputs"),
}


class DetectionQuality(DetectionMetric[DetectionConfig]):
    """AUROC; the rates at the detector's own threshold; and those at one from the clean group."""

    def rate(self, scores: DetectionScores) -> Mapping[str, MetricValue]:
        positive, negative = _GROUPS[scores.of]
        columns = {"AUROC": self._area(scores, f"{positive} above {negative}")}
        if scores.flagged is not None:
            columns |= self._own_threshold(scores, scores.flagged, positive, negative)
        return columns | self._calibrated(scores, positive, negative)

    def _area(self, scores: DetectionScores, rule: str) -> MetricValue:
        up, down = scores.scores[scores.positive], scores.scores[~scores.positive]
        area = area_under_curve(up, down)
        if area is None:
            return MetricValue(value=None, rule=rule)
        confidence = self.config.confidence
        if self.config.interval == "delong":
            interval = delong(up, down, confidence)
        elif self.config.interval == "bootstrap":
            interval = bootstrap(up, down, confidence, self.config.resamples)
        else:
            interval = newcombe(area, len(up), len(down), confidence)
        return MetricValue(value=area, interval=interval, rule=rule)

    def _own_threshold(
        self, scores: DetectionScores, flagged: Tensor, positive: str, negative: str
    ) -> dict[str, MetricValue]:
        truth = scores.positive
        columns = {
            "TPR": self._share(flagged[truth], positive),
            "FPR": self._share(flagged[~truth], negative),
        }
        if scores.of == "training samples":
            columns["precision"] = self._share(truth[flagged], "flagged samples")
        if scores.covers is not None and bool(scores.covers.any()):
            columns["cover FPR"] = self._share(flagged[scores.covers], "covers")
        if scores.named is not None:
            columns["target named"] = self._share(
                scores.named[truth & flagged], "attacked models that are flagged"
            )
        return columns

    def _calibrated(
        self, scores: DetectionScores, positive: str, negative: str
    ) -> dict[str, MetricValue]:
        """The lowest threshold with few enough false positives, and what is found above it.

        It is fitted on the clean group of the very scores that are rated: no defender can.
        """
        rate = self.config.false_positives
        clean = scores.scores[~scores.positive]
        name = f"TPR at {100 * rate:g} % FPR"
        rule = f"{positive}, above a threshold from the same {negative}"
        if not len(clean):
            return {"threshold": MetricValue(value=None, is_share=False, rule=negative)}
        allowed = math.floor(rate * len(clean) + 1e-9)
        threshold = float(clean.sort(descending=True).values[allowed])
        found = scores.scores[scores.positive] > threshold
        return {
            name: self._share(found, rule),
            "threshold": MetricValue(
                value=threshold,
                interval=order_statistics(clean, 1 - rate, self.config.confidence),
                is_share=False,
                rule=f"{100 * rate:g} % of {negative} above it",
            ),
        }

    def _share(self, hits: Tensor, rule: str) -> MetricValue:
        count = len(hits)
        if not count:
            return MetricValue(value=None, numerator=0, denominator=0, rule=rule)
        total = int(hits.to(torch.int64).sum())
        return MetricValue(
            value=total / count,
            numerator=total,
            denominator=count,
            rule=rule,
            interval=wilson(total, count, self.config.confidence),
        )
