"""Several runs as one table."""

from __future__ import annotations

import pytest

from backdoorkit.errors import InputError
from backdoorkit.pipeline.results import Detection
from backdoorkit.report.making import make_report
from backdoorkit.report.merging import merged
from backdoorkit.report.runs import read_run

from .conftest import cell, row, table


def runs(write_run, *tables, **records):
    made = [write_run(t, name) for t, name in zip(tables, "abc", strict=False)]
    return [read_run(folder) for folder in made]


def test_seeds_of_one_setting_are_one_row(write_run):
    one = table(row("badnets", "ft", cell(0, ACC=0.9), cell(2, ACC=0.6)))
    two = table(row("badnets", "ft", cell(1, ACC=0.3)), row("badnets", "fp", cell(1, ACC=0.5)))
    made, notes = merged(runs(write_run, one, two))
    tuned, pruned = made.rows
    assert [c.seed for c in tuned.cells] == [0, 1, 2]
    assert tuned.mean("ACC") == pytest.approx(0.6)
    assert tuned.run == ""
    assert pruned.defense == "fp"
    assert notes == []


def test_the_same_seed_counts_once_and_a_success_wins_over_a_failure(write_run):
    one = table(row("badnets", "ft", cell(0, "broke"), cell(1, ACC=0.8)))
    two = table(row("badnets", "ft", cell(0, ACC=0.9), cell(1, ACC=0.8, RA=0.1)))
    (made,) = merged(runs(write_run, one, two))[0].rows
    assert made.values("ACC") == [0.9, 0.8]
    assert made.values("RA") == [0.1]


def test_runs_that_contradict_each_other_are_refused(write_run):
    one = table(row("badnets", "ft", cell(0, ACC=0.9)))
    two = table(row("badnets", "ft", cell(0, ACC=0.8)))
    with pytest.raises(InputError, match=r"badnets, ft, seed 0: .* ACC is 0.9 in the run a and"):
        merged(runs(write_run, one, two))


def test_equal_names_with_other_settings_stay_apart_and_say_what_differs(write_run):
    short = table(row("badnets", "ft", cell(0, ACC=0.5), setting="x", options={"epochs": 2}))
    long = table(row("badnets", "ft", cell(0, ACC=0.9), setting="y", options={"epochs": 9}))
    one = write_run(short, "short")
    two = write_run(long, "long", recipe={"train": {"epochs": 5}})
    made, notes = merged([read_run(one), read_run(two)])
    assert [(r.run, r.mean("ACC")) for r in made.rows] == [("short", 0.5), ("long", 0.9)]
    assert "runs differ in train.epochs (short: 2, long: 5)." in notes
    assert "runs differ in ft.epochs (short: 2, long: 9)." in notes
    header = make_report([read_run(one), read_run(two)]).to_csv().splitlines()[0]
    assert header.startswith("run,attack,defense,")


def test_one_run_twice_is_refused(write_run, some_table):
    run = read_run(write_run(some_table))
    with pytest.raises(InputError, match="given twice"):
        merged([run, run])


def test_verdicts_are_listed_once_or_named_after_their_run(write_run):
    names = {"data": "d", "model": "m", "attack": "badnets", "detector": "nc"}
    same = Detection(**names, seed=0, score=1.0)
    one = table(detections=(same, Detection(**names, seed=1, score=2.0)))
    two = table(detections=(same, Detection(**names, seed=1, score=3.0)))
    made = merged(runs(write_run, one, two))[0].detections
    assert [(d.attack, d.seed, d.score) for d in made] == [
        ("badnets", 0, 1.0),
        ("badnets", 1, 2.0),
        ("badnets [b]", 1, 3.0),
    ]
