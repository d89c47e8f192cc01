"""What a worker process runs: ``python -m backdoorkit.pipeline._worker_process``.

It reads lines from standard input: the order, then keys of steps, one at a time. To standard
output it writes lines of JSON: ``{"event": ...}`` while a step goes on, and ``{"outcome": ...}``
when it is over, with ``"ends": true`` where the worker can make no other. When standard input ends,
because the run is over or was killed, the worker ends too, in the middle of a step if need be; what
that step was writing is then removed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from backdoorkit._team import Team
    from backdoorkit.pipeline.relay import Event

__all__ = ["Sender", "main", "serve"]

#: Seconds that a step is given to tidy up when the worker must end.
_GRACE: Final = 5.0
#: Seconds before a member of a team says what went wrong with it.
_LAST_WORDS: Final = 3.0


def main(work: Callable[[queue.SimpleQueue[str | None], Sender], None]) -> None:
    """Work until standard input ends; ``work`` is given its lines, and where answers go."""
    # Ctrl-C on the terminal reaches all processes; what it means is the run's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    # Whatever else writes to standard output must not come between the messages.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    code = 0
    try:
        work(_incoming(), Sender(channel))
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        code = 1
    # At once: an interrupt that comes only now must not be told as an error.
    os._exit(code)


def _work(lines: queue.SimpleQueue[str | None], sender: Sender) -> None:
    if (order := lines.get()) is not None:
        serve(order, lines, sender)


def serve(
    order: str,
    lines: queue.SimpleQueue[str | None],
    sender: Sender,
    team_for: Callable[[str], Team] | None = None,
) -> None:
    """Make the steps whose keys come in, until None comes; trainings with the team for the key."""
    from backdoorkit._team import teamwork
    from backdoorkit.pipeline.orders import WorkOrder
    from backdoorkit.pipeline.relay import EventProgress, LogEvents
    from backdoorkit.pipeline.worker import StepWorker, failure

    parsed = WorkOrder.from_json(order)
    logging.basicConfig(level=parsed.log_level, handlers=[LogEvents(sender.event)], force=True)
    worker: StepWorker | Exception
    try:
        worker = StepWorker(parsed)
    except Exception as error:
        worker = error
    while (key := lines.get()) is not None:
        if isinstance(worker, Exception):
            sender.send({"outcome": failure(worker)})
            continue
        team = None if team_for is None else team_for(key)
        with contextlib.nullcontext() if team is None else teamwork(team):
            outcome = worker.carry_out(key, EventProgress(sender.event))
        ends = team is not None and team.broken
        if ends:
            # Where another process was lost, this one is ended now, and the step tried again.
            time.sleep(_LAST_WORDS)
        sender.send({"outcome": outcome, "ends": ends})
        if ends:
            return


class Sender:
    """Writes one message at a time, whichever thread it comes from."""

    def __init__(self, channel: IO[str]) -> None:
        self._channel = channel
        self._lock = threading.Lock()

    def event(self, event: Event) -> None:
        self.send({"event": event})

    def send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._channel.write(json.dumps(message) + "\n")
            self._channel.flush()


def _incoming() -> queue.SimpleQueue[str | None]:
    """Lines of standard input, then None; their end also interrupts a step that goes on."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def read() -> None:
        for line in sys.stdin:
            lines.put(line.strip())
        lines.put(None)
        threading.Timer(_GRACE, os._exit, [130]).start()
        signal.pthread_kill(main_thread, signal.SIGTERM)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _interrupt(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    raise KeyboardInterrupt


if __name__ == "__main__":
    main(_work)
