"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite


class TestCleanLabel(AttackSuite):
    method = "sig"


class TestShareOfTheClass(AttackSuite):
    method = "sig"
    config: ClassVar = {"rate_basis": "target-class", "poison_rate": 0.5, "test_delta": 60.0}


class TestDirtyLabel(AttackSuite):
    method = "sig"
    config: ClassVar = {"rate_basis": "all", "label_map": "all-to-all"}


class TestWrappedBlend(AttackSuite):
    method = "sig"
    config: ClassVar = {"wrapped_blend": True}
