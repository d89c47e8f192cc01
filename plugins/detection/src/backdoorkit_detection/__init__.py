"""How well detectors did: AUROC, rates, calibrated thresholds, each with its uncertainty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

from backdoorkit import MethodInfo, Need, Stage, hookimpl, option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DetectionConfig", "backdoorkit_metrics"]


@attrs.frozen(kw_only=True)
class DetectionConfig:
    """Options of the metric."""

    false_positives: float = option(
        0.05, gt=0, lt=1, help="False positive rate at which thresholds are calibrated."
    )
    confidence: float = option(0.95, gt=0.5, lt=1, help="Level of all intervals.")
    interval: Literal["newcombe", "delong", "bootstrap"] = option(
        "newcombe",
        help="Interval of AUROC. Only Newcombe's says something where the separation is perfect.",
    )
    resamples: int = option(2000, ge=100, help="Resamples of the bootstrap.")


@hookimpl
def backdoorkit_metrics() -> Iterable[MethodInfo]:
    """The metric of detectors."""
    yield MethodInfo(
        name="detection",
        summary="AUROC, TPR, FPR and TPR at a fixed FPR of detectors, over models or over samples.",
        reference="Newcombe: Confidence intervals for an effect size measure based on the "
        "Mann-Whitney statistic, Part 2, Statistics in Medicine, 2006",
        implementation="backdoorkit_detection._metric:DetectionQuality",
        config=DetectionConfig,
        stage=Stage.INFERENCE,
        needs={Need.VERDICTS},
    )
