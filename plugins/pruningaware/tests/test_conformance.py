"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite


class TestSquare(AttackSuite):
    method = "pruningaware"
    config: ClassVar = {"size": 3}


class TestNoisePerBatch(AttackSuite):
    method = "pruningaware"
    config: ClassVar = {"trigger": "noise", "index_policy": "per-batch", "poison_epochs": 1}
