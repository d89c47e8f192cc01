"""What an executor implements: a place where the steps of a run are made."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from backdoorkit.contracts import C, Method

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backdoorkit._progress import Progress
    from backdoorkit.pipeline.orders import WorkOrder
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.runner import StepResult

__all__ = ["CarryOut", "Elsewhere", "Executor"]

#: Makes one step in another process, showing its progress; returns how it ended.
Elsewhere: TypeAlias = "Callable[[Progress], Mapping[str, Any]]"


class CarryOut(Protocol):
    """What the framework gives an executor to call for every step."""

    def __call__(self, step: Step, elsewhere: Elsewhere | None = None) -> StepResult:
        """Find the step in the store or make it, and keep its result.

        What fails is in the result, never raised. Hooks around a step are called here, never two
        at the same time.

        Parameters
        ----------
        step:
            One whose inputs have been carried out.
        elsewhere:
            Makes the step in another process, and waits for it. It is called only where there is
            something to do, with somebody to show the step's progress to, and returns what
            :meth:`backdoorkit.api.StepWorker.carry_out` returned there; the store that the run uses
            must then hold what was made. None: the step is made here.

        """


class Executor(Method[C]):
    """A place where the steps of a plan run.

    One object serves one run: it is opened, given steps a few times, and closed.
    """

    def open(self, order: WorkOrder) -> None:
        """Get ready, before anything is made; ``order`` is what another process must be told.

        Raises :class:`backdoorkit.api.InputError` where that cannot be. What takes long can wait
        until a step is to be made: everything may be in the store.
        """
        del order

    @abc.abstractmethod
    def execute(self, steps: Sequence[Step], carry_out: CarryOut) -> None:
        """Call ``carry_out`` on every step, after those it starts from, and wait for all.

        ``steps`` are in an order that keeps to that; what a step starts from that is not among them
        has been carried out. ``carry_out`` may be called from several threads at once.
        """

    def close(self) -> None:
        """Let go of everything; called in the end, also after a failure or an interrupt."""
