"""The four standard metrics, counted from stored predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from backdoorkit.api import ContractError, Metric, MetricValue
from backdoorkit_metrics import (
    AccuracyConfig,
    AttackSuccessConfig,
    DefenseEffectivenessConfig,
    RobustAccuracyConfig,
)
from backdoorkit_metrics.rating import defense_effectiveness_rating

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.api import Evaluation, Predictions
    from backdoorkit_metrics import CleanRule, TriggeredRule

__all__ = [
    "Accuracy",
    "AttackSuccessRate",
    "DefenseEffectivenessRating",
    "RobustAccuracy",
]


class Accuracy(Metric[AccuracyConfig]):
    """ACC: mean of [f(x) = y] over the clean test images that the rule counts."""

    def compute(self, evaluation: Evaluation) -> Mapping[str, MetricValue]:
        """Column ``ACC``."""
        return {"ACC": _accuracy(evaluation, self.config.rule)}


class AttackSuccessRate(Metric[AttackSuccessConfig]):
    """ASR: mean of [f(T(x)) = η(y)] over the triggered test images that the rule counts."""

    def compute(self, evaluation: Evaluation) -> Mapping[str, MetricValue]:
        """Column ``ASR``; undefined without a trigger."""
        return {"ASR": _attack_success(evaluation, self.config.rule)}


class RobustAccuracy(Metric[RobustAccuracyConfig]):
    """RA: mean of [f(T(x)) = y] over exactly the images of the attack success rate.

    Where no counted image is of its wanted class (rule ``non-target``), ASR + RA is at most 1; the
    rest is neither. A defense that only destroys predictions lowers ASR and does not raise RA.
    """

    def compute(self, evaluation: Evaluation) -> Mapping[str, MetricValue]:
        """Column ``RA``; undefined without a trigger."""
        rule, triggered = self.config.rule, evaluation.triggered
        if triggered is None:
            return {"RA": MetricValue(value=None, rule=rule)}
        counted = _counted(evaluation.clean, triggered, rule)
        return {"RA": _share(triggered.correct, counted, rule)}


class DefenseEffectivenessRating(Metric[DefenseEffectivenessConfig]):
    """DER of the unrounded rates against the model before the defense."""

    def compute(self, evaluation: Evaluation) -> Mapping[str, MetricValue]:
        """Column ``DER``; undefined for the undefended model and without a trigger."""
        config = self.config
        rule = f"ACC {config.accuracy_rule}, ASR {config.attack_rule}"
        rates = [
            metric.value
            for stage in (evaluation.baseline, evaluation)
            if stage is not None
            for metric in (
                _accuracy(stage, config.accuracy_rule),
                _attack_success(stage, config.attack_rule),
            )
            if metric.value is not None
        ]
        value = defense_effectiveness_rating(*rates) if len(rates) == 4 else None
        return {"DER": MetricValue(value=value, rule=rule)}


def _accuracy(evaluation: Evaluation, rule: CleanRule) -> MetricValue:
    clean, target = evaluation.clean, evaluation.target
    # Without one target class (no attack, all-to-all) there is nothing to leave out.
    if rule == "all" or target is None:
        return _share(clean.correct, torch.ones_like(clean.correct), "all")
    return _share(clean.correct, clean.labels != target, rule)


def _attack_success(evaluation: Evaluation, rule: TriggeredRule) -> MetricValue:
    triggered = evaluation.triggered
    if triggered is None:
        return MetricValue(value=None, rule=rule)
    return _share(triggered.hits, _counted(evaluation.clean, triggered, rule), rule)


def _counted(clean: Predictions, triggered: Predictions, rule: TriggeredRule) -> Tensor:
    """Which triggered images count (bool, N)."""
    if rule == "non-target":
        return triggered.eligible
    if rule == "all":
        return torch.ones_like(triggered.correct)
    if triggered.targets is None or not torch.equal(clean.ids, triggered.ids):
        raise ContractError(
            "rule 'conditional' compares each image with and without the trigger: expected "
            f"triggered images with targets and the ids of the clean ones, got {len(clean)} clean "
            f"and {len(triggered)} triggered images that do not match"
        )
    return clean.predicted != triggered.targets


def _share(hits: Tensor, counted: Tensor, rule: str) -> MetricValue:
    numerator, denominator = int((hits & counted).sum()), int(counted.sum())
    value = numerator / denominator if denominator else None
    return MetricValue(value=value, numerator=numerator, denominator=denominator, rule=rule)
