"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite

UNTRAINED = {"width": 4, "steps": 2, "batch_size": 8, "min_bit_accuracy": 0.0, "min_psnr": 0.0}


class TestResidual(AttackSuite):
    method = "ssba"
    config: ClassVar = {**UNTRAINED, "bits": 4}


class TestDirect(AttackSuite):
    method = "ssba"
    config: ClassVar = {**UNTRAINED, "bits": 1, "head": "direct", "index_policy": "per-batch"}
