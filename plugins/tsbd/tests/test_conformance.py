"""What every defense and every analysis must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AnalysisSuite, DefenseSuite


class TestTSBD(DefenseSuite):
    method = "tsbd"
    config: ClassVar = {"epochs": 2}


class TestChoice(DefenseSuite):
    method = "tsbd"
    config: ClassVar = {"epochs": 1, "selection": "clean", "grid": (0.1, 0.2)}


class TestUnlearningCorrelation(AnalysisSuite):
    method = "unlearning-correlation"
    config: ClassVar = {"unlearning_rate": 1e-3}


class TestActiveness(AnalysisSuite):
    method = "activeness"


class TestActivenessWhileUnlearning(AnalysisSuite):
    method = "activeness"
    config: ClassVar = {"preset": "paper"}


class TestTriggerActivatedChange(AnalysisSuite):
    method = "trigger-activated-change"
    config: ClassVar = {"unlearning_rate": 1e-3}


class TestTriggerActivatedChangeAsBackdoorBench(AnalysisSuite):
    method = "trigger-activated-change"
    config: ClassVar = {"preset": "backdoorbench", "max_epochs": 1, "images": 50}
