"""Carries out steps side by side, each after those it starts from."""

from __future__ import annotations

import heapq
import queue
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backdoorkit.pipeline.plan import Step

__all__ = ["StoppedError", "in_order"]

#: Seconds that steps are given to end after a run was interrupted.
_GRACE: Final = 10.0


class StoppedError(KeyboardInterrupt):
    """A step was given up because the run ends; not an error of the step."""


def in_order(
    steps: Sequence[Step],
    do: Callable[[Step], Any],
    *,
    at_once: int,
    stop: Callable[[], None],
) -> None:
    """Call ``do`` on every step, in threads, as soon as what it starts from is done.

    Of steps that are ready, the one that comes first in ``steps`` is taken first. What a step
    starts from that is not among ``steps`` counts as done.

    Parameters
    ----------
    steps:
        In an order in which each comes after what it starts from.
    do:
        Carries out one step; it waits until the step is over, and reports failures by itself.
    at_once:
        Most calls of ``do`` that go on at the same time.
    stop:
        Called where this function must end early, for an interrupt or because ``do`` raised: makes
        all calls of ``do`` that go on end soon.

    """
    _Dispatch(steps, do, at_once).run(stop)


class _Dispatch:
    def __init__(self, steps: Sequence[Step], do: Callable[[Step], Any], at_once: int) -> None:
        self._steps = steps
        self._do = do
        self._at_once = at_once
        self._threads: set[threading.Thread] = set()
        self._ended: queue.SimpleQueue[tuple[threading.Thread, int, BaseException | None]] = (
            queue.SimpleQueue()
        )
        #: numbers of the steps that wait for each key
        self._followers: dict[str, list[int]] = {}
        #: how many steps each still waits for
        self._missing: list[int] = []
        numbers = {step.key for step in steps}
        for number, step in enumerate(steps):
            wanted = {needed.key for needed in step.inputs.values()} & numbers
            self._missing.append(len(wanted))
            for key in wanted:
                self._followers.setdefault(key, []).append(number)
        self._ready = [number for number, missing in enumerate(self._missing) if not missing]

    def run(self, stop: Callable[[], None]) -> None:
        try:
            while self._ready or self._threads:
                while self._ready and len(self._threads) < self._at_once:
                    self._start(heapq.heappop(self._ready))
                thread, number, error = self._ended.get()
                self._threads.discard(thread)
                if error is not None:
                    raise error
                self._release(self._steps[number].key)
        except BaseException:
            stop()
            for thread in self._threads:
                thread.join(_GRACE)
            raise

    def _release(self, key: str) -> None:
        for number in self._followers.pop(key, ()):
            self._missing[number] -= 1
            if not self._missing[number]:
                heapq.heappush(self._ready, number)

    def _start(self, number: int) -> None:
        thread = threading.Thread(target=self._work, args=(number,), daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self, number: int) -> None:
        error: BaseException | None = None
        try:
            self._do(self._steps[number])
        except BaseException as caught:
            error = caught
        self._ended.put((threading.current_thread(), number, error))
