"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite

FAST = {"surrogate_epochs": 1, "steps": 5, "backgrounds": 4}


class TestReplaced(AttackSuite):
    method = "trojannn"
    config: ClassVar = FAST


class TestWrappedDisc(AttackSuite):
    method = "trojannn"
    config: ClassVar = FAST | {"shape": "disc", "planting": "wrap", "backgrounds": 0}


class TestRetrained(AttackSuite):
    method = "trojannn"
    config: ClassVar = {"mode": "retrain", "steps": 5, "reversal_steps": 5, "retrain_epochs": 1}
