"""The four standard metrics, counted from stored predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from backdoorkit.api import ContractError, Metric, MetricValue
from backdoorkit_metrics import (
    AccuracyConfig,
    AttackSuccessConfig,
    CoverAccuracyConfig,
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
    "CoverAccuracy",
    "DefenseEffectivenessRating",
    "RobustAccuracy",
]


class Accuracy(Metric[AccuracyConfig]):
    """ACC: mean of [f(x) = y] over the clean test images that the rule counts."""

    def compute(self, evaluation: Evaluation) -> Mapping[str, MetricValue]:
        """Column ``ACC``."""
        return {"ACC": _accuracy(evaluation, self.config.rule)}


class AttackSuccessRate(Metric[AttackSuccessConfig]):
    """ASR: mean of [f(T(x)) = η(y)] over the triggered test images that the rule counts.

    Of a composed attack, over the triggered images of all parts, and of each part alone.
    """

    def compute(self, evaluation: Evaluation) -> Mapping[str, MetricValue]:
        """Column ``ASR``, undefined without a trigger; ``ASR part`` for each of several parts."""
        rule, triggered = self.config.rule, evaluation.triggered
        columns = {"ASR": _attack_success(evaluation, rule)}
        if triggered is None or triggered.parts is None:
            return columns
        counted = _counted(evaluation.clean, triggered, rule)
        for number, name in enumerate(evaluation.part_names):
            own = counted & (triggered.parts == number)
            columns[f"ASR {name}"] = _share(triggered.hits, own, rule)
        return columns


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


class CoverAccuracy(Metric[CoverAccuracyConfig]):
    """Accuracy on test images that the attacker altered and that keep their label.

    What the papers call noise-mode accuracy (WaNet) or cross accuracy (Input-aware): where it is
    low and the attack success high, whatever alters an image is the trigger.
    """

    def compute(self, evaluation: Evaluation) -> Mapping[str, MetricValue]:
        """Column ``cover ACC``; undefined for attacks without covers of their own."""
        covers = evaluation.covers
        if covers is None:
            return {"cover ACC": MetricValue(value=None, rule="all")}
        everyone = torch.ones_like(covers.correct)
        return {"cover ACC": _share(covers.correct, everyone, "all")}


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
    """Which triggered images count (bool, N); none that the attacker does not attack."""
    if rule == "non-target":
        return triggered.eligible
    if rule == "all":
        return triggered.attacked
    # A composed attack has the clean images once for each part.
    times, rest = divmod(len(triggered), max(1, len(clean)))
    if rest or not torch.equal(clean.ids.repeat(times), triggered.ids):
        raise ContractError(
            "rule 'conditional' compares each image with and without the trigger: expected "
            f"triggered images with the ids of the clean ones, got {len(clean)} clean and "
            f"{len(triggered)} triggered images that do not match"
        )
    assert triggered.targets is not None
    return triggered.attacked & (clean.predicted.repeat(times) != triggered.targets)


def _share(hits: Tensor, counted: Tensor, rule: str) -> MetricValue:
    numerator, denominator = int((hits & counted).sum()), int(counted.sum())
    value = numerator / denominator if denominator else None
    return MetricValue(value=value, numerator=numerator, denominator=denominator, rule=rule)
