"""Progress of a run on standard error: bars on a terminal, few plain lines elsewhere."""

from __future__ import annotations

import abc
import contextlib
import sys
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
    """Progress inside a step, and an observer of the steps themselves."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

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
        finally:
            self.end_step(outcome)

    @abc.abstractmethod
    def begin_step(self, number: int, total: int, label: str) -> None:
        """Step ``number`` (from 1) of ``total`` begins."""

    @abc.abstractmethod
    def end_step(self, outcome: str) -> None:
        """It is over: ``done``, ``in store`` (nothing had to be done) or ``failed``."""

    @abc.abstractmethod
    def start(self, label: str, total: int | None) -> int:
        """As :meth:`backdoorkit.context.Progress.start`."""

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
    """One bar for the run, and one below it for every loop that is running."""

    def __init__(self, bars: Bars) -> None:
        super().__init__()
        self._bars = bars
        self._overall: TaskID | None = None
        self._tasks: dict[int, TaskID] = {}

    def begin_step(self, number: int, total: int, label: str) -> None:
        description = f"step {number} of {total}: {label}"
        if self._overall is None:
            self._overall = self._bars.add_task(description, total=total)
        self._bars.update(self._overall, description=description, completed=number - 1)

    def end_step(self, outcome: str) -> None:
        del outcome
        for task in tuple(self._tasks):
            self.finish(task)
        if self._overall is not None:
            self._bars.advance(self._overall)

    def start(self, label: str, total: int | None) -> int:
        task = self._bars.add_task(f"  {label}", total=total)
        self._tasks[int(task)] = task
        return int(task)

    def advance(self, task: int, amount: int = 1) -> None:
        if task in self._tasks:
            self._bars.advance(self._tasks[task], amount)

    def finish(self, task: int) -> None:
        if task in self._tasks:
            self._bars.remove_task(self._tasks.pop(task))


# -- lines -----------------------------------------------------------------------------------------


@attrs.define
class _Loop:
    label: str
    total: int | None
    done: int = 0


class LineProgress(StepProgress):
    """A line when a step is over, and one every ten seconds while it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._prefix = ""
        self._label = ""
        self._loops: dict[int, _Loop] = {}
        self._started = 0
        self._begun = self._spoken = time.monotonic()

    def begin_step(self, number: int, total: int, label: str) -> None:
        self._prefix, self._label = f"[{number}/{total}]", label
        self._loops.clear()
        self._begun = self._spoken = time.monotonic()

    def end_step(self, outcome: str) -> None:
        seconds = time.monotonic() - self._begun
        took = f" in {seconds:.1f} s" if outcome == "done" else ""
        click.echo(f"{self._prefix} {self._label}: {outcome}{took}", err=True)

    def start(self, label: str, total: int | None) -> int:
        self._started += 1
        self._loops[self._started] = _Loop(label, total)
        return self._started

    def advance(self, task: int, amount: int = 1) -> None:
        loop = self._loops.get(task)
        if loop is None:
            return
        loop.done += amount
        now = time.monotonic()
        if now - self._spoken >= _LINE_INTERVAL:
            self._spoken = now
            of = "" if loop.total is None else f" of {loop.total}"
            click.echo(f"{self._prefix} {loop.label}: {loop.done}{of}", err=True)

    def finish(self, task: int) -> None:
        self._loops.pop(task, None)
