"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite

FAST = {"surrogate_epochs": 1, "steps": 3, "head_epochs": 2}


class TestTargeted(AttackSuite):
    method = "fc"
    config: ClassVar = FAST | {"poison_rate": 0.05, "targets": 2}


class TestTargetedFromScratch(AttackSuite):
    method = "fc"
    config: ClassVar = FAST | {"poison_rate": 0.1, "victim": "from-scratch", "bases": "random"}


class TestHiddenTrigger(AttackSuite):
    method = "hidden-trigger"
    config: ClassVar = FAST | {"rate_basis": "all-within-target", "poison_rate": 0.05}


class TestHiddenTriggerFromScratch(AttackSuite):
    method = "hidden-trigger"
    config: ClassVar = FAST | {"victim": "from-scratch", "patch": "white"}
