"""Observers of a run: told what happens, one at a time, and unable to harm it."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backdoorkit.hooks.registry import Registry
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.recipe import MethodChoice
    from backdoorkit.pipeline.runner import Run, StepResult
    from backdoorkit.watching import Observer

__all__ = ["Observers"]

log = logging.getLogger(__name__)


class Observers:
    """The observers that a recipe names, in its order.

    What one of them raises is logged, and the run goes on. Steps may be told of from several
    threads; no two calls overlap.
    """

    def __init__(self, choices: Sequence[MethodChoice], registry: Registry) -> None:
        # Made before anything runs: what is missing shows at once.
        self._observers: list[tuple[str, Observer[Any]]] = [
            (choice.name, registry.create(choice.method, choice.config)) for choice in choices
        ]
        self._lock = threading.Lock()
        self._begun: dict[str, float] = {}

    def run_begin(self, run: Run) -> None:
        """Before the first step."""
        self._tell("run_begin", lambda observer: observer.run_begin(run))

    def step_begin(self, run: Run, step: Step) -> None:
        """Before a step is looked for in the store."""
        self._begun[step.key] = time.perf_counter()
        self._tell("step_begin", lambda observer: observer.step_begin(run, step))

    def step_end(self, run: Run, result: StepResult) -> None:
        """After a step was found, made, or has failed."""
        seconds = time.perf_counter() - self._begun.pop(result.step.key)
        self._tell("step_end", lambda observer: observer.step_end(run, result, seconds))

    def run_end(self, run: Run, error: BaseException | None) -> None:
        """After the last step, with the table where there is one."""
        self._tell("run_end", lambda observer: observer.run_end(run, error))

    def _tell(self, what: str, call: Callable[[Observer[Any]], None]) -> None:
        with self._lock:
            for name, observer in self._observers:
                try:
                    call(observer)
                except Exception as error:
                    line = " ".join(f"{type(error).__name__}: {error}".split())
                    log.warning("observer %r failed in %s: %s", name, what, line)
                    log.debug("observer %r failed in %s", name, what, exc_info=True)
