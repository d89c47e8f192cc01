"""What every attack must keep."""

from __future__ import annotations

from typing import ClassVar

from backdoorkit.testing import AttackSuite

FAST = {
    "surrogate_epochs": 1,
    "trigger_images": 32,
    "trigger_epochs": 1,
    "extension_epochs": 1,
    "injection_epochs": 1,
    "injection_batch_size": 64,
}


class TestTransfer(AttackSuite):
    method = "lba"
    config: ClassVar = FAST


class TestSingleTask(AttackSuite):
    method = "lba"
    config: ClassVar = FAST | {"mode": "single-task"}


class TestDataOnly(AttackSuite):
    method = "lba"
    config: ClassVar = FAST | {"mode": "data-only"}
