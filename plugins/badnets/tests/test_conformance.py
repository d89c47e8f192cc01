"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite


class TestWhitePatch(AttackSuite):
    method = "badnets"


class TestGrid(AttackSuite):
    method = "badnets"
    config: ClassVar = {"trigger": "grid", "size": 3, "offset": 1, "corner": "top-left"}


class TestAllCorners(AttackSuite):
    method = "badnets"
    config: ClassVar = {"trigger": "grid", "corner": "all", "index_policy": "per-batch"}


class TestSourceSpecific(AttackSuite):
    method = "badnets"
    config: ClassVar = {
        "label_map": "source-specific",
        "source_classes": [1, 2],
        "cover_ratio": 0.5,
        "rate_basis": "source-classes",
    }


class TestAppended(AttackSuite):
    method = "badnets"
    config: ClassVar = {"rate_basis": "append"}


class TestAllToAll(AttackSuite):
    method = "badnets"
    config: ClassVar = {"label_map": "all-to-all", "poison_rate": 0.5}
