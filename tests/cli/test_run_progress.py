"""Progress: bars on a terminal, few lines elsewhere, told of every step by hooks."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
import types

import pytest

from backdoorkit._progress import SILENT
from backdoorkit.cli.progress import BarProgress, LineProgress, shown_progress
from backdoorkit.hooks.registry import Registry

STEPS = [types.SimpleNamespace(key=name, label=f"make {name}") for name in "abc"]
RUN = types.SimpleNamespace(plan=types.SimpleNamespace(steps=STEPS))


def carry_out(registry, step, make):
    return registry.step(RUN, step, lambda run, step: make())


def done(reused=False):
    return types.SimpleNamespace(reused=reused)


@pytest.fixture
def clock(monkeypatch):
    state = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: state.now)
    return state


def test_lines_say_how_each_step_ended(clock, capsys):
    registry = Registry()

    def slow():
        clock.now += 2.5
        return done()

    def failing():
        raise ValueError("no")

    with shown_progress(registry, quiet=False) as progress:
        assert isinstance(progress, LineProgress)
        registry.run_begin(RUN)
        result = carry_out(registry, STEPS[0], slow)
        carry_out(registry, STEPS[1], lambda: done(reused=True))
        with pytest.raises(ValueError, match="no"):
            carry_out(registry, STEPS[2], failing)
    assert result.reused is False
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "[1/3] make a: done in 2.5 s",
        "[2/3] make b: in store",
        "[3/3] make c: failed",
    ]
    assert registry.plugins == ()


def test_a_long_step_speaks_every_ten_seconds(clock, capsys):
    progress = LineProgress()
    progress.begin_step(1, 2, "train")
    epochs = progress.start("training", 30)
    for _ in range(30):
        clock.now += 1
        progress.advance(epochs)
    progress.finish(epochs)
    progress.advance(epochs)
    assert capsys.readouterr().err.splitlines() == [
        "[1/2] training: 10 of 30, 0:20 left",
        "[1/2] training: 20 of 30, 0:10 left",
        "[1/2] training: 30 of 30",
    ]


def test_quiet_shows_nothing(capsys):
    registry = Registry()
    with shown_progress(registry, quiet=True) as progress:
        assert progress is SILENT
        assert registry.plugins == ()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("no_color", [True, False])
def test_bars_on_a_terminal_without_colour_where_that_is_asked(monkeypatch, no_color):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("NO_COLOR", "1" if no_color else "")
    registry = Registry()

    def make():
        task = progress.start("training [1]", 4)
        progress.advance(task, 3)
        progress._bars.refresh()
        return done()

    with shown_progress(registry, quiet=False) as progress:
        assert isinstance(progress, BarProgress)
        registry.run_begin(RUN)
        carry_out(registry, STEPS[0], make)
        progress.advance(99)
        progress.finish(99)
        carry_out(registry, STEPS[1], make)
    shown = terminal.getvalue()
    assert "step 1 of 3: make a" in shown
    assert "step 2 of 3: make b" in shown
    assert "training [1]" in shown
    assert "3/4" in shown
    assert ("\x1b[32m" in shown) is not no_color


def side_by_side(progress, registry, show):
    """Two steps in threads, each with a loop; ``show`` is called while both go on."""
    begun, over = threading.Barrier(3), threading.Event()

    def make(label):
        task = progress.start(label, 4)
        progress.advance(task, 3)
        begun.wait(10)
        over.wait(10)
        progress.advance(task)
        progress.finish(task)
        return done()

    threads = [
        threading.Thread(target=carry_out, args=(registry, STEPS[n], lambda n=n: make(f"loop {n}")))
        for n in (0, 1)
    ]
    for thread in threads:
        thread.start()
    begun.wait(10)
    show()
    over.set()
    for thread in threads:
        thread.join()


def test_steps_side_by_side_have_a_line_each_and_loops_of_their_own(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    registry = Registry()
    with shown_progress(registry, quiet=False) as progress:
        registry.run_begin(RUN)
        side_by_side(progress, registry, progress._bars.refresh)
        carry_out(registry, STEPS[2], done)
        assert progress._labels == progress._lines == progress._tasks == {}
    shown = terminal.getvalue()
    for words in ("2 steps at once", "step 1 of 3: make a", "step 2 of 3: make b"):
        assert words in shown
    assert re.search(r"(1: )?loop 0", shown)
    assert re.search(r"2: loop 1|1: loop 0", shown)


def test_lines_of_steps_side_by_side_say_which(clock, capsys):
    progress = LineProgress()
    registry = Registry()
    registry.register(progress, "lines")
    registry.run_begin(RUN)

    def show():
        clock.now += 12

    side_by_side(progress, registry, show)
    lines = sorted(capsys.readouterr().err.splitlines())
    assert lines == [
        "[1/3] loop 0: 4 of 4",
        "[1/3] make a: done in 12.0 s",
        "[2/3] loop 1: 4 of 4",
        "[2/3] make b: done in 12.0 s",
    ]
