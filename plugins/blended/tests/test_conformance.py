"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite


class TestNoise(AttackSuite):
    method = "blended"


class TestDrawing(AttackSuite):
    method = "blended"
    config: ClassVar = {"pattern": "procedural", "test_alpha": 0.5}


class TestPerBatch(AttackSuite):
    method = "blended"
    config: ClassVar = {"index_policy": "per-batch", "test_alpha": 0.5}


class TestResampledNoise(AttackSuite):
    method = "blended"
    config: ClassVar = {"resample": True, "grey_noise": True}
