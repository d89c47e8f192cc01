"""The default executor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backdoorkit.contracts import Executor
from backdoorkit.pipeline.catalog import InProcessOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backdoorkit.contracts import CarryOut
    from backdoorkit.pipeline.plan import Step

__all__ = ["InProcess"]


class InProcess(Executor[InProcessOptions]):
    """One step after the other, in the order of the plan."""

    def execute(self, steps: Sequence[Step], carry_out: CarryOut) -> None:
        for step in steps:
            carry_out(step)
