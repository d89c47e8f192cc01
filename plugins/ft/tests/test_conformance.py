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


class TestSharpnessAware(DefenseSuite):
    method = "ft"
    config: ClassVar = {"epochs": 1, "sharpness_radius": 0.05, "freeze_norm_statistics": True}
