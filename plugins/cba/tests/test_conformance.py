"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite


class TestPaper(AttackSuite):
    method = "cba"


class TestDataOnly(AttackSuite):
    method = "cba"
    config: ClassVar = {"preset": "data-only", "mixed_classes": [3, 1]}


class TestInPlace(AttackSuite):
    method = "cba"
    config: ClassVar = {"mode": "data-only", "rate_basis": "all", "cover_ratio": 1.0}
