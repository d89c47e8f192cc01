"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite


class TestDetoxified(AttackSuite):
    method = "dfst"
    config: ClassVar = {"injector_share": 0.2, "injector_epochs": 1}


class TestTrainingSet(AttackSuite):
    method = "dfst"
    config: ClassVar = {"index_policy": "fixed", "cover_ratio": 0.0}


class TestFeedForward(AttackSuite):
    method = "dfst"
    config: ClassVar = {
        "style": "feedforward",
        "cover_ratio": 0.0,
        "generator_steps": 3,
        "generator_width": 4,
        "surrogate_epochs": 1,
    }
