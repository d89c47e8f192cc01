"""What every defense must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import DefenseSuite


class TestMCR(DefenseSuite):
    method = "mcr"
    config: ClassVar = {"epochs": 2, "endpoint_epochs": 1, "grid": (0.3, 0.6)}


class TestFixedPlace(DefenseSuite):
    method = "mcr"
    config: ClassVar = {
        "epochs": 1,
        "endpoint_epochs": 1,
        "curve": "polygonal",
        "points": 4,
        "selection": "fixed",
        "penalized": "points",
        "late_decay": False,
        "schedule": "cosine",
    }
