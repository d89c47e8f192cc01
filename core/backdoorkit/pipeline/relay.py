"""Progress that crosses from a worker to whoever shows it, as plain values.

An event is one of ``["start", task, label, total]``, ``["advance", task, amount]``,
``["finish", task]`` and ``["log", name, level, message]``.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backdoorkit._progress import Progress

__all__ = ["Event", "EventProgress", "LogEvents", "Replay"]

Event: TypeAlias = "Sequence[Any]"
#: Least seconds between two messages about one task.
_INTERVAL: Final = 0.2


class EventProgress:
    """Progress in a worker: tells it to ``send``, a few times a second at most for each task."""

    def __init__(self, send: Callable[[Event], None]) -> None:
        self._send = send
        self._started = 0
        #: units not told yet, and when units were told last
        self._pending: dict[int, tuple[int, float]] = {}

    def start(self, label: str, total: int | None) -> int:
        """As :meth:`backdoorkit.api.Progress.start`."""
        self._started += 1
        self._pending[self._started] = (0, time.monotonic())
        self._send(["start", self._started, label, total])
        return self._started

    def advance(self, task: int, amount: int = 1) -> None:
        """As :meth:`backdoorkit.api.Progress.advance`."""
        if task not in self._pending:
            return
        pending, told = self._pending[task]
        pending, now = pending + amount, time.monotonic()
        if now - told >= _INTERVAL:
            self._send(["advance", task, pending])
            pending, told = 0, now
        self._pending[task] = (pending, told)

    def finish(self, task: int) -> None:
        """As :meth:`backdoorkit.api.Progress.finish`."""
        pending, _ = self._pending.pop(task, (0, 0.0))
        if pending:
            self._send(["advance", task, pending])
        self._send(["finish", task])


class LogEvents(logging.Handler):
    """Sends what a worker logs, to be logged where the run was started."""

    def __init__(self, send: Callable[[Event], None]) -> None:
        super().__init__()
        self._send_event = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message."""
        self._send_event(["log", record.name, record.levelno, record.getMessage()])


class Replay:
    """Shows a worker's events in ``progress``; for the time of one step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[int, int] = {}

    def show(self, event: Event) -> None:
        """One event, in the order in which they were sent."""
        what, *facts = event
        if what == "log":
            name, level, message = facts
            logging.getLogger(name).log(level, "%s", message)
        elif what == "start":
            number, label, total = facts
            self._tasks[number] = self._progress.start(label, total)
        elif facts[0] in self._tasks:
            task = self._tasks[facts[0]]
            if what == "advance":
                self._progress.advance(task, facts[1])
            else:
                del self._tasks[facts[0]]
                self._progress.finish(task)

    def end(self) -> None:
        """Finish what the worker left open, as it does when it is killed."""
        for task in self._tasks.values():
            self._progress.finish(task)
        self._tasks.clear()
