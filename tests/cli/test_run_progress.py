"""Progress: bars on a terminal, few lines elsewhere, told of every step by hooks."""

from __future__ import annotations

import io
import sys
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
