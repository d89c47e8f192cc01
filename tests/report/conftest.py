"""Runs as they lie in a store, written by hand: reports never need a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backdoorkit.pipeline.results import NO_DEFENSE, Cell, Cost, Named, Origin, Row, Table


def cell(seed: int = 0, error: str | None = None, **shares: float | None) -> Cell:
    metrics = {column: {"value": value, "rule": "all"} for column, value in shares.items()}
    cost = Cost(samples_seen=1000 + seed, gradient_steps=10, seconds=2.5, peak_memory_bytes=3 << 20)
    used = {"metrics": metrics, "cost": cost, "clean_samples": 50}
    return Cell(seed=seed, error=error, **({} if error else used))


def row(
    attack: str = "badnets",
    defense: str = NO_DEFENSE,
    *cells: Cell,
    setting: str = "",
    attack_preset: str = "",
    defense_preset: str = "",
    options: dict[str, Any] | None = None,
    model: str = "small-cnn",
) -> Row:
    """A row whose labels are its methods' names, but for what stands in brackets."""
    name, victim = (text.partition(" (")[0] for text in (defense, attack))
    repair = Named(name=name, options=options or {}, preset=defense_preset)
    origin = Origin(
        attacks=() if attack == "none" else (Named(name=victim, preset=attack_preset),),
        defense=None if defense == NO_DEFENSE else repair,
        setting=setting or f"{model} {attack} {defense}",
    )
    names = {"data": "digits", "model": model, "attack": attack, "defense": defense}
    return Row(**names, cells=cells, origin=origin)


def table(*rows: Row, **more: Any) -> Table:
    columns = dict.fromkeys(c for r in rows for item in r.cells for c in item.metrics)
    return Table(columns=tuple(columns), rows=rows, **more)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store" / "runs").mkdir(parents=True)
    return tmp_path / "store"


@pytest.fixture
def write_run(store: Path) -> Any:
    """Write a finished run into the store and return its folder."""

    def write(made: Table, name: str = "toy", suffix: str = "0a1b2c3d", **record: Any) -> Path:
        folder = store / "runs" / f"{name}-{suffix}"
        folder.mkdir()
        facts = {
            "name": name,
            "backdoorkit": "0.1.0",
            "command": "backdoorkit run badnets ft",
            "started": "2026-01-02T03:04:05.000000+00:00",
            "finished": "2026-01-02T03:05:05+00:00",
            "device": "cpu",
            "seeds": [0],
            "oracle_permitted": False,
            "recipe": {"name": name, "train": {"epochs": 2}},
            "steps": [],
            **record,
        }
        (folder / "table.json").write_text(json.dumps(made.to_json()), encoding="utf-8")
        (folder / "record.json").write_text(json.dumps(facts), encoding="utf-8")
        (folder / "recipe.toml").write_text('name = "toy"\n', encoding="utf-8")
        return folder

    return write


@pytest.fixture
def some_table() -> Table:
    """Two attacks, fine-tuning and another defense, two seeds."""
    rows = []
    for attack, asr in (("badnets", 0.95), ("blended", 0.9)):
        rows.append(row(attack, NO_DEFENSE, cell(0, ACC=0.9, ASR=asr), cell(1, ACC=0.92, ASR=asr)))
        tuned = (cell(s, ACC=0.88, ASR=0.5, DER=0.7) for s in (0, 1))
        rows.append(row(attack, "ft", *tuned))
        rows.append(row(attack, "tsbd", cell(0, ACC=0.85, ASR=0.01, DER=0.94), cell(1, "broke")))
    return table(*rows)
