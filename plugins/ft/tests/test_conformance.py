"""What every defense must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import DefenseSuite


class TestEverything(DefenseSuite):
    method = "ft"
    config: ClassVar = {"epochs": 2}


class TestHead(DefenseSuite):
    method = "ft"
    config: ClassVar = {"epochs": 1, "scope": "head", "freeze_norm_statistics": True}
