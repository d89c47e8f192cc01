"""What every defense, every metric and every analysis must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AnalysisSuite, DefenseSuite, MetricSuite

FAST = {"turning_epoch": 1, "isolation_rate": 0.05, "epochs": 1, "learning_rate": 0.05}


class TestSequential(DefenseSuite):
    method = "abl"
    config: ClassVar = {**FAST, "unlearning_epochs": 1}


class TestJoint(DefenseSuite):
    method = "abl"
    config: ClassVar = {**FAST, "gga_form": "joint", "isolation_loss": "flooding"}


class TestPixelNoise(DefenseSuite):
    method = "abl"
    config: ClassVar = {**FAST, "unlearning": "pixel-noise"}


class TestLastLayers(DefenseSuite):
    method = "abl"
    config: ClassVar = {**FAST, "unlearning": "fine-tuning-last"}


class TestIsolationPrecision(MetricSuite):
    method = "isolation-precision"


class TestLossCurves(AnalysisSuite):
    method = "loss-curves"
    config: ClassVar = {"epochs": 2, "learning_rate": 0.05}
