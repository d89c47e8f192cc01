"""Progress of a run on standard error: bars on a terminal, few plain lines elsewhere."""

from __future__ import annotations

import abc
import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from backdoorkit._progress import SILENT
from backdoorkit.hooks.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from backdoorkit._progress import Progress
    from backdoorkit.hooks.registry import Registry

__all__ = ["BarProgress", "LineProgress", "StepProgress", "shown_progress"]

_OBSERVER: Final = "backdoorkit.cli.progress"
#: Least seconds between two plain lines about one step.
_LINE_INTERVAL: Final = 10.0


@contextlib.contextmanager
def shown_progress(registry: Registry, *, quiet: bool) -> Iterator[Progress]:
    """Progress shown as fits standard error, and told of every step by ``registry``."""
    if quiet:
        yield SILENT
        return
    with _fitting() as progress:
        registry.register(progress, _OBSERVER)
        try:
            yield progress
        finally:
            registry.unregister(_OBSERVER)


@contextlib.contextmanager
def _fitting() -> Iterator[StepProgress]:
    if not sys.stderr.isatty():
        yield LineProgress()
        return
    with _bars() as bars:
        yield BarProgress(bars)


class StepProgress(abc.ABC):
    """Progress inside steps, and an observer of the steps themselves.

    Steps may go on side by side, each in a thread of its own: a loop belongs to the step of the
    thread that starts it.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._current = threading.local()
        self._lock = threading.RLock()

    @hookimpl
    def backdoorkit_run_begin(self, run: Any) -> None:
        """Number the steps."""
        self._numbers = {step.key: number for number, step in enumerate(run.plan.steps, 1)}

    @hookimpl(wrapper=True)
    def backdoorkit_step(self, run: Any, step: Any) -> Generator[None, Any, Any]:
        """Show the step while it is carried out, and how it ended."""
        del run
        self.begin_step(self._numbers.get(step.key, 0), len(self._numbers), step.label)
        outcome = "failed"
        try:
            result = yield
            outcome = "in store" if getattr(result, "reused", False) else "done"
            return result
        except KeyboardInterrupt:
            outcome = "interrupted"
            raise
        finally:
            self.end_step(outcome)

    def begin_step(self, number: int, total: int, label: str) -> None:
        """Step ``number`` (from 1) of ``total`` begins in this thread."""
        with self._lock:
            self._current.number = number
            self._begin(number, total, label)

    def end_step(self, outcome: str) -> None:
        """It is over: ``done``, ``in store`` (nothing had to be done), ``failed``..."""
        with self._lock:
            self._end(self._current.number, outcome)

    def start(self, label: str, total: int | None) -> int:
        """As :meth:`backdoorkit.context.Progress.start`."""
        with self._lock:
            return self._start(getattr(self._current, "number", 0), label, total)

    @abc.abstractmethod
    def _begin(self, number: int, total: int, label: str) -> None: ...

    @abc.abstractmethod
    def _end(self, number: int, outcome: str) -> None: ...

    @abc.abstractmethod
    def _start(self, number: int, label: str, total: int | None) -> int: ...

    @abc.abstractmethod
    def advance(self, task: int, amount: int = 1) -> None:
        """As :meth:`backdoorkit.context.Progress.advance`."""

    @abc.abstractmethod
    def finish(self, task: int) -> None:
        """As :meth:`backdoorkit.context.Progress.finish`."""


# -- bars ------------------------------------------------------------------------------------------


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),  # without colours where NO_COLOR is set
        transient=True,
    )


class BarProgress(StepProgress):
    """One bar for the run, and one below it for every loop that is running.

    Where several steps go on, each has a line of its own, above its loops.
    """

    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self._bars = bars
        self._overall: TaskID | None = None
        #: labels of the steps that go on, and the lines of those that have one
        self._labels: dict[int, str] = {}
        self._lines: dict[int, TaskID] = {}
        #: each with the number of its step
        self._tasks: dict[int, tuple[TaskID, int]] = {}

    def _begin(self, number: int, total: int, label: str) -> None:
        self._labels[number] = label
        if self._overall is None:
            self._overall = self._bars.add_task("", total=total)
        self._describe(total)

    def _end(self, number: int, outcome: str) -> None:
        del outcome
        for task, (_, owner) in tuple(self._tasks.items()):
            if owner == number:
                self.finish(task)
        self._labels.pop(number, None)
        if number in self._lines:
            self._bars.remove_task(self._lines.pop(number))
        if self._overall is not None:
            self._bars.advance(self._overall)
            self._describe(len(self._numbers))

    def _describe(self, total: int) -> None:
        """What goes on: in the run's own bar if it is one step, else in a line for each."""
        assert self._overall is not None
        if len(self._labels) == 1 and not self._lines:
            ((number, label),) = self._labels.items()
            self._bars.update(self._overall, description=f"step {number} of {total}: {label}")
        elif self._labels:
            several = f"{len(self._labels)} steps at once" if len(self._labels) > 1 else "one step"
            self._bars.update(self._overall, description=several)
            for number, label in self._labels.items():
                if number not in self._lines:
                    line = self._bars.add_task(f"step {number} of {total}: {label}", total=None)
                    self._lines[number] = line

    def _start(self, number: int, label: str, total: int | None) -> int:
        step = f"{number}: " if self._lines else ""
        task = self._bars.add_task(f"  {step}{label}", total=total)
        self._tasks[int(task)] = (task, number)
        return int(task)

    def advance(self, task: int, amount: int = 1) -> None:
        with self._lock:
            if task in self._tasks:
                self._bars.advance(self._tasks[task][0], amount)

    def finish(self, task: int) -> None:
        with self._lock:
            if task in self._tasks:
                self._bars.remove_task(self._tasks.pop(task)[0])


# -- lines -----------------------------------------------------------------------------------------


@attrs.define
class _Step:
    prefix: str
    label: str
    begun: float
    #: when a line about it was written last
    spoken: float


@attrs.define
class _Loop:
    label: str
    total: int | None
    step: _Step
    begun: float
    done: int = 0


class LineProgress(StepProgress):
    """A line when a step is over, and one every ten seconds while it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: dict[int, _Step] = {}
        self._loops: dict[int, _Loop] = {}
        self._started = 0

    def _begin(self, number: int, total: int, label: str) -> None:
        now = time.monotonic()
        self._steps[number] = _Step(f"[{number}/{total}]", label, begun=now, spoken=now)

    def _end(self, number: int, outcome: str) -> None:
        step = self._steps.pop(number)
        self._loops = {task: loop for task, loop in self._loops.items() if loop.step is not step}
        seconds = time.monotonic() - step.begun
        took = f" in {seconds:.1f} s" if outcome == "done" else ""
        click.echo(f"{step.prefix} {step.label}: {outcome}{took}", err=True)

    def _start(self, number: int, label: str, total: int | None) -> int:
        now = time.monotonic()
        step = self._steps.get(number) or _Step("", "", begun=now, spoken=now)
        self._started += 1
        self._loops[self._started] = _Loop(label, total, step, begun=now)
        return self._started

    def advance(self, task: int, amount: int = 1) -> None:
        with self._lock:
            loop = self._loops.get(task)
            if loop is None:
                return
            loop.done += amount
            now = time.monotonic()
            if now - loop.step.spoken >= _LINE_INTERVAL:
                loop.step.spoken = now
                click.echo(f"{loop.step.prefix} {loop.label}: {_far(loop, now)}", err=True)

    def finish(self, task: int) -> None:
        with self._lock:
            self._loops.pop(task, None)


def _far(loop: _Loop, now: float) -> str:
    """How far a loop has come, and how long the rest will take at that speed."""
    if loop.total is None:
        return str(loop.done)
    far = f"{loop.done} of {loop.total}"
    spent = now - loop.begun
    # What a worker has done before it was heard of tells nothing of its speed.
    if spent < 1 or not 0 < loop.done < loop.total:
        return far
    seconds = round(spent / loop.done * (loop.total - loop.done))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{far}, {left} left"
