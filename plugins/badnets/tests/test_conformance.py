"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite


class TestWhitePatch(AttackSuite):
    method = "badnets"


class TestGrid(AttackSuite):
    method = "badnets"
    config: ClassVar = {"trigger": "grid", "size": 3, "offset": 1, "corner": "top-left"}


class TestAllToAll(AttackSuite):
    method = "badnets"
    config: ClassVar = {"label_map": "all-to-all", "poison_rate": 0.5}
