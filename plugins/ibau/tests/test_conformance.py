"""What every defense must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import DefenseSuite


class TestIBAU(DefenseSuite):
    method = "ibau"
    config: ClassVar = {"rounds": 2, "ascent_steps": 3}


class TestFast(DefenseSuite):
    method = "ibau"
    config: ClassVar = {"rounds": 1, "ascent_steps": 3, "ascent": "gradient", "implicit": False}
