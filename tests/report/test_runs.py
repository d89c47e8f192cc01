"""Runs are found by name, and read whether they have finished or not."""

from __future__ import annotations

import json

import pytest

from backdoorkit.errors import InputError
from backdoorkit.pipeline.plan import StepKind
from backdoorkit.pipeline.plan_file import plan_from_json
from backdoorkit.pipeline.results import NOT_FINISHED, Table
from backdoorkit.pipeline.store import Store
from backdoorkit.report.making import make_report
from backdoorkit.report.runs import find_run, read_run

KEYS = {name: (name + "0" * 64)[:64] for name in ("data", "victim", "seen", "measured", "tuned")}


def test_a_run_is_found_by_folder_name_recipe_s_name_and_recipe_file(write_run, some_table, store):
    folder = write_run(some_table, "digits-5")
    recipe = store.parent / "digits-5.toml"
    recipe.write_text("seeds = [0]\n")
    for text in (str(folder), folder.name, "digits-5", str(recipe)):
        assert find_run(text, store) == folder


def test_a_mistyped_run_is_answered_with_the_nearest(write_run, some_table, store):
    write_run(some_table, "quickstart")
    with pytest.raises(InputError, match="did you mean 'quickstart'"):
        find_run("quikstart", store)
    with pytest.raises(InputError, match="it has quickstart-0a1b2c3d"):
        find_run("zzz", store)


def test_two_runs_of_one_recipe_must_be_told_apart(write_run, some_table, store):
    write_run(some_table, suffix="0a1b2c3d")
    write_run(some_table, suffix="ffffffff")
    with pytest.raises(InputError, match=r"2 runs are called 'toy': toy-.*newest first"):
        find_run("toy", store)
    assert find_run("toy-ffffffff", store).name == "toy-ffffffff"


def test_an_empty_store_and_another_folder_are_refused(store, tmp_path):
    with pytest.raises(InputError, match="has none; give another with --store"):
        find_run("toy", store)
    with pytest.raises(InputError, match="no run's folder"):
        find_run(str(tmp_path), store)


def test_a_finished_run_is_its_table(write_run, some_table):
    run = read_run(write_run(some_table))
    assert run.table == some_table
    assert run.warnings == ()
    assert run.recipe == 'name = "toy"\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("table.json", "{"),
        ("table.json", "[]"),
        ("table.json", '{"columns": 3}'),
        ("record.json", "{"),
        ("record.json", "[]"),
        ("record.json", '{"steps": 3}'),
        ("record.json", '{"steps": [{}]}'),
    ],
)
def test_a_damaged_file_is_named(write_run, some_table, name, content):
    folder = write_run(some_table)
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=name):
        read_run(folder)


def test_a_table_is_the_same_after_json(some_table):
    again = Table.from_json(json.loads(json.dumps(some_table.to_json())))
    assert again == some_table


# -- runs that have not finished -------------------------------------------------------------------


@pytest.fixture
def interrupted(store):
    """A run of which the victim is measured, and the defense is not made."""

    def step(kind, name, **inputs):
        made = {"kind": kind.value, "key": KEYS[name], "label": name, "seed": 0}
        return made | {"inputs": {role: KEYS[source] for role, source in inputs.items()}}

    # Inputs may stand behind what starts from them.
    steps = [
        step(StepKind.MEASURE, "measured", victim="victim"),
        step(StepKind.DATA, "data"),
        step(StepKind.VICTIM, "victim", data="data"),
        step(StepKind.DEFEND, "tuned", victim="victim"),
        step(StepKind.MEASURE, "seen", predictions="tuned", victim="victim"),
    ]

    def entry(defense, model_step, measure):
        names = {"data": "digits", "model": "small-cnn", "attack": "badnets", "defense": defense}
        origin = {"attacks": [], "defense": None, "setting": "s"}
        keys = {"victim": "victim", "model_step": model_step, "measure": measure}
        return {
            **names,
            "seed": 0,
            "skipped": "",
            "detect": None,
            "analyze": None,
            **{name: KEYS[key] for name, key in keys.items()},
            "origin": origin,
        }

    folder = store / "runs" / "toy-0a1b2c3d"
    folder.mkdir(parents=True)
    entries = [entry("no defense", "victim", "measured"), entry("ft", "tuned", "seen")]
    header = {"name": "toy", "started": "2026-01-02T03:04:05", "device": "cpu", "seeds": [0]}
    (folder / "plan.json").write_text(json.dumps({**header, "steps": steps, "entries": entries}))
    artifacts = Store(store)
    cost = {"cost": {"seconds": 2.0, "samples_seen": 7}}
    for kind, name in ((StepKind.DATA, "data"), (StepKind.VICTIM, "victim")):
        with artifacts.create(kind.value, KEYS[name]) as draft:
            draft.facts.update(cost)
    with artifacts.create(StepKind.MEASURE.value, KEYS["measured"]) as draft:
        draft.write_json("metrics.json", {"ACC": {"value": 0.75}})
    return folder


def test_an_interrupted_run_is_shown_as_far_as_it_came(interrupted):
    run = read_run(interrupted)
    victim, tuned = run.table.rows
    assert victim.mean("ACC") == 0.75
    assert victim.cells[0].cost.samples_seen == 7
    assert tuned.errors == (NOT_FINISHED,)
    (warning,) = run.warnings
    assert "3 of its 5 steps are done" in warning
    text = make_report([run]).to_markdown()
    assert "has not finished" in text
    assert "| badnets | ft | pending |" in text
    assert "not finished: badnets, ft" in text


def test_a_step_that_failed_in_an_interrupted_run_says_why(interrupted):
    errors = interrupted / "errors"
    errors.mkdir()
    path = errors / f"{StepKind.DEFEND.value}-{KEYS['tuned'][:16]}.txt"
    path.write_text("Traceback\n  File\nRuntimeError: out of memory\n")
    record = read_run(interrupted).record
    (step,) = (step for step in record["steps"] if step["label"] == "tuned")
    assert step["error"] == "RuntimeError: out of memory"


def test_a_run_that_was_started_again_has_not_finished(interrupted, some_table):
    (interrupted / "table.json").write_text(json.dumps(some_table.to_json()))
    (interrupted / "record.json").write_text(json.dumps({"started": "2025-12-31T00:00:00"}))
    assert read_run(interrupted).warnings
    (interrupted / "record.json").write_text(json.dumps({"started": "2026-01-02T03:04:05"}))
    assert not read_run(interrupted).warnings


def test_a_damaged_artifact_counts_as_not_done(interrupted, store):
    metrics = store / "artifacts" / StepKind.MEASURE.value / KEYS["measured"][:24] / "metrics.json"
    metrics.write_text('{"ACC": {"value": 1.0}}')
    assert read_run(interrupted).table.rows[0].errors == (NOT_FINISHED,)


def test_steps_that_start_from_each_other_are_no_plan():
    one = {"kind": "data", "key": "a", "label": "", "seed": 0, "inputs": {"data": "b"}}
    with pytest.raises(InputError, match="no plan of a run"):
        plan_from_json({"steps": [one, {**one, "key": "b", "inputs": {"data": "a"}}]})
