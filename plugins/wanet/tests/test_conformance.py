"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite


class TestPaper(AttackSuite):
    method = "wanet"


class TestData(AttackSuite):
    method = "wanet"
    config: ClassVar = {"preset": "data"}


class TestSourceSpecific(AttackSuite):
    method = "wanet"
    config: ClassVar = {"label_map": "source-specific", "source_classes": [1, 2]}
