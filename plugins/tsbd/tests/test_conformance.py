"""What every defense must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import DefenseSuite


class TestTSBD(DefenseSuite):
    method = "tsbd"
    config: ClassVar = {"epochs": 2}


class TestChoice(DefenseSuite):
    method = "tsbd"
    config: ClassVar = {"epochs": 1, "selection": "clean", "grid": (0.1, 0.2)}
