"""Progress and messages that cross from a worker as plain values."""

from __future__ import annotations

import json
import logging
import time
import types

import pytest

from backdoorkit.pipeline.relay import EventProgress, LogEvents, Replay


class Shown:
    """Units of each loop, by label."""

    def __init__(self):
        self.loops = {}
        self.done = {}
        self.finished = []

    def start(self, label, total):
        self.loops[len(self.loops) + 100] = (label, total)
        return len(self.loops) + 99

    def advance(self, task, amount=1):
        self.done[task] = self.done.get(task, 0) + amount

    def finish(self, task):
        self.finished.append(task)


@pytest.fixture
def clock(monkeypatch):
    state = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: state.now)
    return state


@pytest.fixture
def shown():
    return Shown()


@pytest.fixture
def replay(shown):
    return Replay(shown)


def through_json(replay, sent):
    """What a worker sends: as text, and shown."""

    def send(event):
        sent.append(event)
        replay.show(json.loads(json.dumps(event)))

    return send


def test_all_units_arrive_in_few_messages(clock, shown, replay):
    sent = []
    progress = EventProgress(through_json(replay, sent))
    outer, inner = progress.start("epochs", 2), progress.start("batches", None)
    for _ in range(1000):
        clock.now += 0.001
        progress.advance(inner)
    progress.advance(outer, 2)
    progress.finish(inner)
    progress.finish(outer)
    assert shown.loops == {100: ("epochs", 2), 101: ("batches", None)}
    assert shown.done == {100: 2, 101: 1000}
    assert shown.finished == [101, 100]
    assert len(sent) < 12


def test_what_is_over_does_not_advance(clock, shown, replay):
    progress = EventProgress(through_json(replay, []))
    task = progress.start("epochs", 2)
    progress.finish(task)
    clock.now += 1
    progress.advance(task)
    assert shown.done == {}


def test_loops_of_a_worker_that_died_are_finished(shown, replay):
    replay.show(["start", 1, "epochs", 2])
    replay.show(["start", 2, "batches", 9])
    replay.show(["finish", 2])
    replay.end()
    replay.end()
    replay.show(["advance", 1, 1])
    assert shown.finished == [101, 100]
    assert shown.done == {}


def test_messages_are_logged_under_their_own_name_and_level(replay, caplog):
    logger = logging.Logger("backdoorkit.somewhere")
    logger.addHandler(LogEvents(through_json(replay, [])))
    with caplog.at_level(logging.INFO):
        logger.warning("%d %% of it", 50)
        logger.info("more")
    assert caplog.record_tuples == [
        ("backdoorkit.somewhere", logging.WARNING, "50 % of it"),
        ("backdoorkit.somewhere", logging.INFO, "more"),
    ]
