"""The table: means, spreads, rounding, marks."""

from __future__ import annotations

import json

import pytest

from backdoorkit.pipeline.costs import costs_grid
from backdoorkit.pipeline.grids import main_grid, percent
from backdoorkit.pipeline.results import (
    NO_DEFENSE,
    AttackCost,
    Cell,
    Cost,
    Detection,
    Row,
    Table,
)


def cell(seed: int, **values: float | None) -> Cell:
    metrics = {column: {"value": value} for column, value in values.items()}
    return Cell(seed=seed, metrics=metrics, cost=Cost(seconds=2.0))


def row(*cells: Cell, attack: str = "badnets", defense: str = NO_DEFENSE) -> Row:
    return Row(data="digits", model="small-cnn", attack=attack, defense=defense, cells=cells)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.96095, "96.10"), (0.50985, "50.99"), (0.00125, "0.13"), (1.0, "100.00"), (None, "-")],
)
def test_percent_rounds_half_up(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_mean_and_sample_standard_deviation_over_seeds() -> None:
    two = row(cell(0, ACC=0.9), cell(1, ACC=0.8))
    assert two.mean("ACC") == pytest.approx(0.85)
    assert two.spread("ACC") == pytest.approx(0.0707106781)


def test_one_seed_has_no_spread() -> None:
    assert row(cell(0, ACC=0.9)).spread("ACC") is None


def test_undefined_values_are_left_out_of_the_mean() -> None:
    assert row(cell(0, DER=None), cell(1, DER=0.5)).mean("DER") == 0.5


def test_what_is_equal_in_all_rows_is_not_a_column() -> None:
    table = Table(columns=("ACC",), rows=(row(cell(0, ACC=0.9)),))
    header, body = main_grid(table)
    assert header == ["attack", "defense", "ACC %", "seeds", "seconds"]
    assert body == [["badnets", NO_DEFENSE, "90.00", "1", "2.0"]]


def test_oracle_rows_are_marked_and_explained() -> None:
    marked = Cell(seed=0, metrics={"ACC": {"value": 0.5}}, oracle=True)
    text = Table(columns=("ACC",), rows=(row(marked, defense="tsbd"),)).to_text()
    assert "tsbd (oracle)" in text
    assert "oracle: a level was chosen on test attack success" in text


def test_a_failed_seed_is_counted_and_its_reason_printed() -> None:
    table = Table(
        columns=("ACC",),
        rows=(row(cell(0, ACC=0.9), Cell(seed=1, error="out of memory"), defense="ft"),),
    )
    assert table.failed
    assert "1 of 2" in table.to_text()
    assert "failed: badnets, ft: out of memory" in table.to_text()


def test_a_table_without_errors_has_not_failed() -> None:
    assert not Table(columns=("ACC",), rows=(row(cell(0, ACC=0.9)),)).failed


def test_verdicts_are_a_section_of_their_own() -> None:
    verdict = Detection(
        data="digits",
        model="small-cnn",
        attack="badnets",
        detector="nc",
        seed=3,
        score=3.652,
        threshold=2.0,
        detected=True,
        target=0,
    )
    text = Table(columns=(), rows=(), detections=(verdict,)).to_text()
    assert "backdoored" in text
    assert "3.652" in text


def test_json_is_plain_and_holds_every_seed() -> None:
    table = Table(columns=("ACC",), rows=(row(cell(0, ACC=0.9), cell(1, ACC=0.8)),))
    plain = json.loads(json.dumps(table.to_json()))
    assert [seed["seed"] for seed in plain["rows"][0]["seeds"]] == [0, 1]
    assert plain["rows"][0]["mean"]["ACC"] == pytest.approx(0.85)


# -- what attacks cost -----------------------------------------------------------------------------


def cost(attack: str, seed: int = 0, **seconds: float) -> AttackCost:
    parts = {f"{name}_seconds": value for name, value in seconds.items()}
    return AttackCost(
        data="digits", model="small-cnn", attack=attack, seed=seed, samples_seen=100 + seed, **parts
    )


def test_attacks_cost_their_mean_over_seeds() -> None:
    costs = (cost("a", 0, assets=1.0, training=2.0), cost("a", 2, assets=3.0), cost("b"))
    header, body = costs_grid(costs)
    assert header == ["attack", "assets s", "poisoning s", "training s", "samples seen"]
    assert body == [["a", "2.0", "0.0", "1.0", "101"], ["b", "0.0", "0.0", "0.0", "100"]]


def test_text_and_json_tell_what_attacks_cost() -> None:
    table = Table(columns=(), rows=(), attacks=(cost("a", training=2.0),))
    assert table.to_text().splitlines()[-1].split() == ["a", "0.0", "0.0", "2.0", "100"]
    assert table.to_json()["attacks"][0]["training_seconds"] == 2.0
