"""Steps in threads, each after those it starts from."""

from __future__ import annotations

import threading
import time
import types

import pytest

from backdoorkit.pipeline.dispatch import StoppedError, in_order


def step(key, *inputs):
    return types.SimpleNamespace(key=key, inputs={str(n): other for n, other in enumerate(inputs)})


@pytest.fixture
def diamond():
    a = step("a", step("made before"))
    b, c = step("b", a), step("c", a)
    return [a, b, c, step("d", b, c, b), step("e")]


def never():
    raise AssertionError("stopped")


class Recorder:
    """Remembers what began and ended, and how many went on at most."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds
        self.events = []
        self.running = 0
        self.most = 0
        self._lock = threading.Lock()

    def __call__(self, step):
        with self._lock:
            self.events.append(f"begin {step.key}")
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(self.seconds)
        with self._lock:
            self.events.append(f"end {step.key}")
            self.running -= 1


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_a_step_begins_when_what_it_starts_from_is_over(diamond, at_once):
    record = Recorder(0.02)
    in_order(diamond, record, at_once=at_once, stop=never)
    place = record.events.index
    assert len(record.events) == 10
    assert place("end a") < min(place("begin b"), place("begin c"))
    assert max(place("end b"), place("end c")) < place("begin d")
    assert min(at_once, 2) <= record.most <= at_once


def test_one_at_a_time_is_the_given_order(diamond):
    record = Recorder()
    in_order(diamond, record, at_once=1, stop=never)
    assert [event for event in record.events if event.startswith("begin")] == [
        "begin a",
        "begin b",
        "begin c",
        "begin d",
        "begin e",
    ]


def test_nothing_is_nothing_to_do():
    in_order([], never, at_once=2, stop=never)


def test_what_a_step_raises_stops_the_others_and_is_raised(diamond):
    stopped = threading.Event()
    ended = []

    def do(step):
        if step.key == "a":
            raise KeyError("a bug")
        stopped.wait(10)
        ended.append(step.key)
        raise StoppedError

    with pytest.raises(KeyError, match="a bug"):
        in_order(diamond, do, at_once=8, stop=stopped.set)
    assert ended == ["e"]
