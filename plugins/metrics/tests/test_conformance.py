"""What every metric must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import MetricSuite


class TestAccuracy(MetricSuite):
    method = "accuracy"


class TestAttackSuccessRate(MetricSuite):
    method = "attack-success-rate"


class TestConditionalAttackSuccessRate(MetricSuite):
    method = "attack-success-rate"
    config: ClassVar = {"rule": "conditional"}


class TestRobustAccuracy(MetricSuite):
    method = "robust-accuracy"


class TestCoverAccuracy(MetricSuite):
    method = "cover-accuracy"


class TestDefenseEffectivenessRating(MetricSuite):
    method = "defense-effectiveness-rating"
