"""What every defense must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import DefenseSuite


class TestFinePruning(DefenseSuite):
    method = "fp"
    config: ClassVar = {"epochs": 2}


class TestFixedRatio(DefenseSuite):
    method = "fp"
    config: ClassVar = {"epochs": 1, "selection": "fixed", "ratio": 0.5}
