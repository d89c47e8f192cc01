"""What runs inside the cluster: one task for each step, and an actor that gathers progress."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from backdoorkit.executing import EventProgress, LogEvents, StepWorker, WorkOrder, failure
from backdoorkit_ray._mirror import Mirror, MirroredStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from backdoorkit.executing import Event

__all__ = ["BEGIN", "Board", "carry_out"]

#: A step begins in a worker: what was shown of an earlier worker is over.
BEGIN: Final = "begin"
#: Least seconds between two messages about one step.
_INTERVAL: Final = 0.5

#: The last run's worker in this process, so that torch and images are loaded once.
_kept: dict[tuple[str, str | None], StepWorker] = {}


def carry_out(order: str, storage: str | None, key: str, board: Any) -> dict[str, Any]:
    """Make a step and say how it ended, as :meth:`StepWorker.carry_out` does.

    ``order`` is a :class:`WorkOrder` as JSON, whose store is this node's own where there is a
    ``storage``; ``board`` is the actor that progress is told to.
    """
    channel = _Channel(lambda events: board.add.remote(key, events))
    channel.send([BEGIN])
    parsed = WorkOrder.from_json(order)
    handler = LogEvents(channel.send)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(parsed.log_level)
    try:
        worker = _worker(order, parsed, storage)
        return worker.carry_out(key, EventProgress(channel.send))
    except Exception as error:
        return failure(error)
    finally:
        root.removeHandler(handler)
        channel.flush()


def _worker(order: str, parsed: WorkOrder, storage: str | None) -> StepWorker:
    if (order, storage) not in _kept:
        _kept.clear()
        if storage is None:
            store = None
        else:
            folder = parsed.store or str(Path(tempfile.gettempdir()) / "backdoorkit-ray")
            store = MirroredStore(folder, Mirror(storage))
        _kept[order, storage] = StepWorker(parsed, store)
    return _kept[order, storage]


class _Channel:
    """Gathers events, so that not every one is a message of its own."""

    def __init__(self, post: Callable[[list[Event]], Any]) -> None:
        self._post = post
        self._events: list[Event] = []
        self._posted = 0.0

    def send(self, event: Event) -> None:
        self._events.append(event)
        if time.monotonic() - self._posted >= _INTERVAL:
            self.flush()

    def flush(self) -> None:
        if self._events:
            events, self._events = self._events, []
            self._posted = time.monotonic()
            self._post(events)


class Board:
    """An actor: holds what steps have told until the run asks for it."""

    def __init__(self) -> None:
        self._events: dict[str, list[Event]] = {}

    def add(self, key: str, events: list[Event]) -> None:
        """Remember events of the step ``key``."""
        self._events.setdefault(key, []).extend(events)

    def take(self, key: str) -> list[Event]:
        """Events of the step since they were taken last."""
        return self._events.pop(key, [])
