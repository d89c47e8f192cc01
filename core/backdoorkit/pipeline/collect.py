"""From what the steps made to the table: one cell per row and seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from backdoorkit.pipeline.origins import origin_of
from backdoorkit.pipeline.results import (
    NO_DEFENSE,
    AttackCost,
    Cell,
    Cost,
    Detection,
    Finding,
    Row,
    Table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backdoorkit.pipeline.plan import Entry, Plan
    from backdoorkit.pipeline.results import Origin, Rating
    from backdoorkit.pipeline.store import Artifact

__all__ = ["Outcome", "Outcomes", "collect"]


class Outcome(Protocol):
    """How a step ended."""

    @property
    def artifact(self) -> Artifact | None: ...

    @property
    def error(self) -> str | None: ...


class Outcomes(Protocol):
    """A run, as far as its table goes: what was planned, and how each step ended, by its key."""

    @property
    def plan(self) -> Plan: ...

    @property
    def results(self) -> Mapping[str, Outcome]: ...


def collect(run: Outcomes, ratings: Sequence[Rating] = ()) -> Table:
    """The table of a run whose steps have all been tried; ``ratings`` are of its detectors."""
    rows: dict[tuple[str, ...], list[Cell]] = {}
    origins: dict[tuple[str, ...], Origin] = {}
    detections, findings, attacks = [], [], []
    columns: dict[str, None] = {}
    for entry in run.plan.entries:
        if entry.detect is not None:
            detections.append(_detection(run, entry))
            continue
        if entry.analyze is not None or entry.skipped:
            findings.append(_finding(run, entry))
            continue
        if entry.defense == NO_DEFENSE:
            attacks += _attack_cost(run, entry)
        cell = _cell(run, entry)
        columns.update(dict.fromkeys(cell.metrics))
        names = (entry.data, entry.model, entry.attack, entry.defense)
        rows.setdefault(names, []).append(cell)
        if names not in origins:
            origins[names] = entry.origin or origin_of(entry)
    return Table(
        columns=tuple(columns),
        rows=tuple(
            Row(
                **dict(zip(("data", "model", "attack", "defense"), names, strict=True)),
                cells=tuple(cells),
                origin=origins[names],
            )
            for names, cells in rows.items()
        ),
        detections=tuple(detections),
        ratings=tuple(ratings),
        findings=tuple(findings),
        attacks=tuple(attacks),
    )


def _cell(run: Outcomes, entry: Entry) -> Cell:
    assert entry.measure is not None
    measured = run.results[entry.measure.key]
    if measured.artifact is None:
        return Cell(seed=entry.seed, error=measured.error)
    made = run.results[entry.model_step.key].artifact
    facts: dict[str, Any] = {} if made is None else dict(made.facts)
    return Cell(
        seed=entry.seed,
        metrics=measured.artifact.read_json("metrics.json"),
        cost=Cost.from_json(facts.get("cost", {})),
        clean_samples=facts.get("clean_samples", 0),
        oracle=facts.get("oracle", False),
    )


def _attack_cost(run: Outcomes, entry: Entry) -> list[AttackCost]:
    """One cost; none where nobody attacked, and where the victim was made elsewhere or failed."""
    poison = entry.victim.inputs.get("poison")
    if poison is None:
        return []
    made = [run.results[step.key].artifact for step in (poison, entry.victim)]
    facts = [artifact.facts for artifact in made if artifact is not None]
    if len(facts) < 2:
        return []
    poisoning, training = (Cost.from_json(fact["cost"]) for fact in facts)
    assets = [Cost.from_json(asset) for fact in facts for asset in fact.get("assets", [])]
    everything = [poisoning, training, *assets]
    cost = AttackCost(
        data=entry.data,
        model=entry.model,
        attack=entry.attack,
        seed=entry.seed,
        assets_seconds=sum(asset.seconds for asset in assets),
        poisoning_seconds=poisoning.seconds,
        training_seconds=training.seconds,
        samples_seen=sum(part.samples_seen for part in everything),
        gradient_steps=sum(part.gradient_steps for part in everything),
        chose_test_images=facts[0].get("test_data", False),
    )
    return [cost]


def _detection(run: Outcomes, entry: Entry) -> Detection:
    assert entry.detect is not None
    result = run.results[entry.detect.key]
    names: dict[str, Any] = {
        "data": entry.data,
        "model": entry.model,
        "attack": entry.attack,
        "detector": entry.defense,
        "seed": entry.seed,
    }
    if result.artifact is None:
        return Detection(**names, error=result.error)
    verdict = result.artifact.read_json("verdict.json")
    figures = {
        name: str(result.artifact.file(f"{name}.png")) for name in verdict.get("captions", {})
    }
    oracle = result.artifact.facts.get("oracle", False)
    return Detection(**names, **verdict, figures=figures, oracle=oracle)


def _finding(run: Outcomes, entry: Entry) -> Finding:
    names: dict[str, Any] = {
        "data": entry.data,
        "model": entry.model,
        "attack": entry.attack,
        "analysis": entry.defense,
        "seed": entry.seed,
    }
    if entry.analyze is None:
        return Finding(**names, skipped=entry.skipped)
    result = run.results[entry.analyze.key]
    if result.artifact is None:
        return Finding(**names, error=result.error)
    found = result.artifact.read_json("values.json")
    captions = found["captions"]
    figures = {name: str(result.artifact.file(f"{name}.png")) for name in captions}
    return Finding(**names, values=found["values"], figures=figures, captions=captions)
