"""Worker processes of a run: started when they are needed, replaced when they die."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import LostWorkerError
from backdoorkit.pipeline.dispatch import StoppedError
from backdoorkit.pipeline.relay import Replay

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backdoorkit._progress import Progress
    from backdoorkit.pipeline.orders import WorkOrder
    from backdoorkit.pipeline.plan import Step

__all__ = ["WorkerPool"]

log = logging.getLogger(__name__)

#: Seconds that a worker is given to end by itself.
_GRACE: Final = 7.0


class WorkerPool:
    """As many workers as steps are asked for at once; each lives as long as the run.

    Torch is imported and images are loaded once in each. A worker that dies is replaced, and its
    step tried again.

    Parameters
    ----------
    order:
        What workers are told.
    command:
        Arguments of Python that start one, which then keeps to the lines that
        :mod:`backdoorkit.pipeline._worker_process` describes.
    devices:
        What they are to run on: each new one on that which the fewest have.
    retries:
        How often a step is tried again whose worker died.

    """

    def __init__(
        self, order: WorkOrder, command: Sequence[str], *, devices: Sequence[str], retries: int
    ) -> None:
        self._order = order
        self._command = command
        self._devices = devices
        self._retries = retries
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: list[_Worker] = []
        self._stopping = False

    def made(self, step: Step, progress: Progress) -> Mapping[str, Any]:
        """Have a worker make the step, and return how it ended.

        Raises :class:`LostWorkerError` where every try ended with the death of its worker.
        """
        reason = ""
        for attempt in range(self._retries + 1):
            if attempt:
                log.warning("%s: %s; trying it again on a fresh worker", step.label, reason)
            worker = self._take()
            try:
                outcome = worker.carry_out(step.key, progress)
            except _Died as death:
                reason = str(death)
                self._forget(worker)
            else:
                (self._forget if worker.ends else self._give_back)(worker)
                return outcome
        raise LostWorkerError(
            f"{reason} ({self._retries + 1} times; more may help: "
            f"executor.retries, or fewer jobs where memory is short)"
        )

    def _take(self) -> _Worker:
        with self._lock:
            if self._stopping:
                raise StoppedError
            if self._idle:
                return self._idle.pop()
            taken = [worker.device for worker in self._all]
            # The one that the fewest have.
            device = min(self._devices, key=taken.count)
            worker = _Worker(self._command, attrs.evolve(self._order, device=device))
            self._all.append(worker)
            return worker

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            if not self._stopping:
                self._idle.append(worker)
                return
        worker.forget()

    def _forget(self, worker: _Worker) -> None:
        worker.forget()
        with self._lock:
            self._all.remove(worker)
            if self._stopping:
                raise StoppedError

    def close(self) -> None:
        """End all workers; a step that goes on is interrupted."""
        with self._lock:
            self._stopping = True
            workers, idle = list(self._all), list(self._idle)
            self._idle.clear()
        for worker in workers:
            worker.hang_up()
        for worker in workers:
            worker.wait()
        for worker in idle:
            worker.forget()


class _Died(Exception):
    """A worker ended in the middle of a step."""


class _Worker:
    """One worker process; used by one thread at a time."""

    def __init__(self, command: Sequence[str], order: WorkOrder) -> None:
        self.device = order.device
        #: whether it said that it can make no other step
        self.ends = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={
                **os.environ,
                # Modules are to be found where this process finds them.
                "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                # Libraries read it when they are imported.
                "OMP_NUM_THREADS": str(order.threads),
            },
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        with contextlib.suppress(OSError):  # it shows when the step is given
            self._write(order.to_json())

    def carry_out(self, key: str, progress: Progress) -> Mapping[str, Any]:
        """Have a step made; raises :class:`_Died` where the process ends before the step."""
        assert self._process.stdout is not None
        replay = Replay(progress)
        try:
            self._write(key)
            for line in self._process.stdout:
                message = json.loads(line)
                if "outcome" in message:
                    outcome: Mapping[str, Any] = message["outcome"]
                    self.ends = message.get("ends", False)
                    return outcome
                replay.show(message["event"])
        except (OSError, ValueError):
            pass  # it died before it could read or while it wrote, or was told to end meanwhile
        finally:
            replay.end()
        raise _Died(f"its worker process {self._end()}")

    def hang_up(self) -> None:
        """Tell the worker to end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def wait(self) -> None:
        """Wait until it has ended; it is killed where that takes too long."""
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(1)  # its last words; not forever, should a child of it live on

    def forget(self) -> None:
        """End it and close what leads to it; for whoever uses it."""
        self.hang_up()
        self.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _listen(self) -> None:
        """Pass on what the process writes to standard error, so that it does not tear bars."""
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                sys.stderr.write(line)

    def _end(self) -> str:
        """How the process ended, in words."""
        self.wait()
        code = self._process.returncode
        if code >= 0:
            return f"ended by itself (exit code {code})"
        memory = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
        return f"was killed by signal {-code} ({signal.strsignal(-code)}){memory}"
