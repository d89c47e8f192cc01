"""The default executor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backdoorkit.pipeline.catalog import InProcessOptions
from backdoorkit.placing import Executor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backdoorkit.pipeline.plan import Step
    from backdoorkit.placing import CarryOut

__all__ = ["InProcess"]


class InProcess(Executor[InProcessOptions]):
    """One step after the other, in the order of the plan."""

    def execute(self, steps: Sequence[Step], carry_out: CarryOut) -> None:
        for step in steps:
            carry_out(step)
