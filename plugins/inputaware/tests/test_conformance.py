"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite

TINY = {"width": 4, "depth": 2, "mask_epochs": 1, "mask_batch_size": 64, "donors": 8}


class TestPaper(AttackSuite):
    method = "inputaware"
    config: ClassVar = TINY


class TestReleasedCode(AttackSuite):
    method = "inputaware"
    config: ClassVar = {**TINY, "preset": "released-code", "label_map": "all-to-all"}


class TestSourceSpecific(AttackSuite):
    method = "inputaware"
    config: ClassVar = {**TINY, "label_map": "source-specific", "source_classes": [1, 2]}
