"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite


class TestDome(AttackSuite):
    method = "lf"


class TestOptimised(AttackSuite):
    method = "lf"
    config: ClassVar = {"pattern": "optimised", "steps": 5, "surrogate_epochs": 1}


class TestDeepFool(AttackSuite):
    method = "lf"
    config: ClassVar = {"pattern": "deepfool", "surrogate_epochs": 1}
