"""Observers: told of every step and its end, never able to harm a run."""

from __future__ import annotations

import json
import logging
from collections import Counter
from typing import ClassVar

import pytest

from backdoorkit import MethodInfo, hookimpl
from backdoorkit.errors import BrokenPluginError
from backdoorkit.watching import Observer


class Seen(Observer):
    """Keeps what it was told; fails at the end if it is to."""

    events: ClassVar[list] = []

    def run_begin(self, run):
        self.events.append(("begin", len(run.plan.steps)))

    def step_begin(self, run, step):
        self.events.append(("step", step.kind.value))

    def step_end(self, run, result, seconds):
        assert seconds >= 0
        assert run.results[result.step.key] is result
        self.events.append(("done", result.step.kind.value, result.reused, result.error))

    def run_end(self, run, error):
        self.events.append(("end", None if run.table is None else len(run.table.rows), error))
        raise RuntimeError("something\nunforeseen")


@pytest.fixture
def seen(registry, toy):
    Seen.events.clear()

    class Plugin:
        @staticmethod
        @hookimpl
        def backdoorkit_observers():
            for name, target in (("seen", "toy_methods:Seen"), ("missing", "nothing_here:No")):
                yield MethodInfo(
                    name=name, summary="It.", implementation=target, config=toy.NoOptions
                )

    toy.Seen = Seen
    registry.register(Plugin, name="watchers")
    return Seen.events


def test_every_step_is_told_in_order_and_an_observer_that_fails_is_passed_over(
    seen, recipe, run, caplog
):
    result = run(recipe(observers=[{"name": "seen"}], defenses=[{"name": "toy-defense"}]))
    assert not result.failed
    assert seen[0] == ("begin", (len(seen) - 2) // 2)
    assert seen[1:3] == [("step", "data"), ("done", "data", False, None)]
    assert seen[-1] == ("end", 2, None)
    kinds = Counter(event[1] for event in seen if event[0] == "done")
    assert kinds == {"data": 1, "poison": 1, "victim": 1, "predictions": 2, "metrics": 2} | {
        "repaired": 1
    }
    assert "observer 'seen' failed in run_end: RuntimeError: something unforeseen" in caplog.text


def test_steps_from_the_store_and_steps_that_fail_are_told_too(seen, recipe, run):
    wanted = recipe(
        observers=[{"name": "seen"}], defenses=[{"name": "toy-defense", "behavior": "raise"}]
    )
    run(wanted)
    seen.clear()
    run(wanted)
    done = {event[1]: event[2:] for event in seen if event[0] == "done"}
    assert done["victim"] == (True, None)
    assert "unforeseen" in done["repaired"][1]
    assert "unforeseen" in done["metrics"][1]  # could not be tried


def test_an_observer_that_cannot_be_made_ends_the_run_before_it_begins(seen, recipe, run, toy):
    with pytest.raises(BrokenPluginError, match="nothing_here"):
        run(recipe(observers=[{"name": "missing"}]))
    assert toy.CALLS == []


def test_who_watches_changes_neither_results_nor_the_run_s_folder(seen, recipe, run):
    plain, watched = run(recipe()), run(recipe(observers=[{"name": "seen"}]))
    assert plain.directory == watched.directory
    assert plain.table == watched.table


# -- jsonlines -------------------------------------------------------------------------------------


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_has_a_line_of_json_for_every_event(recipe, run):
    result = run(
        recipe(
            observers=[{"name": "jsonlines"}],
            defenses=[{"name": "toy-defense", "behavior": "raise"}],
        )
    )
    events = lines(result.directory / "events.jsonl")
    assert [events[0]["event"], events[-1]["event"]] == ["run_begin", "run_end"]
    assert events[0]["recipe"]["name"] == "run"
    assert [e["time"] for e in events] == sorted(e["time"] for e in events)
    ends = {e["key"]: e for e in events if e["event"] == "step_end"}
    assert len(ends) == sum(e["event"] == "step_begin" for e in events) == events[0]["steps"]
    victim = next(e for e in ends.values() if e["kind"] == "victim")
    assert victim["cost"]["samples_seen"] == 320
    assert victim["error"] is None
    (failed,) = (e for e in ends.values() if e["kind"] == "repaired")
    assert (failed["artifact"], "unforeseen" in failed["error"]) == (None, True)
    assert failed["label"] in events[-1]["failed"]
    assert events[-1]["table"]["rows"][0]["mean"]["ACC"] > 0


def test_a_second_run_appends_and_says_what_was_found(recipe, run, tmp_path):
    path = tmp_path / "logs" / "all.jsonl"
    wanted = recipe(observers=[{"name": "jsonlines", "path": str(path)}])
    run(wanted)
    first = len(lines(path))
    run(wanted)
    again = lines(path)[first:]
    assert len(again) == first
    assert all(e["reused"] for e in again if e["event"] == "step_end")


def test_a_log_that_cannot_be_written_does_not_stop_the_run(recipe, run, tmp_path, caplog):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "log.jsonl"
    with caplog.at_level(logging.WARNING):
        result = run(recipe(observers=[{"name": "jsonlines", "path": str(path)}]))
    assert not result.failed
    assert "observer 'jsonlines' failed in run_begin" in caplog.text
