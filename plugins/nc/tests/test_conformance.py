"""What every detector and every defense must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import DefenseSuite, DetectorSuite

QUICK = {"inversion_steps": 6, "inversion_batches": 2, "success_threshold": 0.5, "threshold": 0.0}


class TestDetector(DetectorSuite):
    method = "nc"
    config: ClassVar = QUICK


class TestUnlearning(DefenseSuite):
    method = "nc"
    config: ClassVar = QUICK


class TestPruning(DefenseSuite):
    method = "nc"
    config: ClassVar = {**QUICK, "repair": "pruning"}
