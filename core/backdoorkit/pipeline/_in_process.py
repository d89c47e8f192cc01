"""The default executor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backdoorkit.contracts import Executor
from backdoorkit.pipeline.catalog import InProcessOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.runner import StepResult

__all__ = ["InProcess"]


class InProcess(Executor[InProcessOptions]):
    """One step after the other, in the order of the plan."""

    def execute(self, steps: Sequence[Step], carry_out: Callable[[Step], StepResult]) -> None:
        for step in steps:
            carry_out(step)
