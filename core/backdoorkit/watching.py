"""What an observer of runs implements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backdoorkit.contracts import C, Method

if TYPE_CHECKING:
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.runner import Run, StepResult

__all__ = ["Observer"]


class Observer(Method[C]):
    """Watches a run in the process that the user started; switched on by name.

    All methods may be left out. What they raise is logged and harms nothing; no two calls overlap.
    ``run`` is a ``backdoorkit.pipeline.runner.Run``: recipe, plan, directory, device, and results
    by step key as they come.
    """

    def run_begin(self, run: Run) -> None:
        """Called before the first step."""
        del run

    def step_begin(self, run: Run, step: Step) -> None:
        """Called before a step is looked for in the store, and made if it is not there."""
        del run, step

    def step_end(self, run: Run, result: StepResult, seconds: float) -> None:
        """Called when a step was found, made, or has failed, after so many seconds."""
        del run, result, seconds

    def run_end(self, run: Run, error: BaseException | None) -> None:
        """Called at the end, also after a failure or Ctrl-C.

        ``run.table`` holds the results, unless ``error`` has ended the run early.
        """
        del run, error
