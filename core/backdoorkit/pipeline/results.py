"""The table a run ends in: one row per attack and defense, one column per metric."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from backdoorkit.errors import InputError
from backdoorkit.pipeline.costs import AttackCost

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ALL_ATTACKS",
    "NOT_FINISHED",
    "NO_DEFENSE",
    "AttackCost",
    "Cell",
    "Cost",
    "Detection",
    "Finding",
    "Named",
    "Origin",
    "Rating",
    "Row",
    "Table",
    "origin_from_json",
]

#: Label of the row that rates a detector over all models of a run.
ALL_ATTACKS: Final = "all"
#: Label of the row that shows the model as it was, before any defense.
NO_DEFENSE: Final = "no defense"
#: Error of what a run that is still going on, or was interrupted, has not come to.
NOT_FINISHED: Final = "not finished"
T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Cost:
    """What a step took. Zero for steps whose result was imported."""

    samples_seen: int = 0
    gradient_steps: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int = 0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Cost:
        return cls(**{key: values[key] for key in attrs.fields_dict(cls) if key in values})


@attrs.frozen(kw_only=True)
class Cell:
    """One seed's result: metric values by column, or what went wrong."""

    seed: int
    #: column -> {"value", "numerator", "denominator", "rule"}
    metrics: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    cost: Cost = Cost()
    #: clean samples the defender used
    clean_samples: int = 0
    #: a level was chosen on test attack success; such a cell is marked wherever it is shown
    oracle: bool = False
    error: str | None = None

    def value(self, column: str) -> float | None:
        return self.metrics.get(column, {}).get("value")


@attrs.frozen(kw_only=True)
class Named:
    """A method with its resolved options, as plain values."""

    name: str
    options: Mapping[str, Any] = attrs.field(factory=dict)
    #: preset of released code that it follows, where that deviates from the paper's settings
    preset: str = ""


@attrs.frozen(kw_only=True)
class Origin:
    """What the names of a row stand for."""

    #: the attack's parts; none where nobody attacked
    attacks: tuple[Named, ...] = ()
    #: None for the model as it was
    defense: Named | None = None
    #: digest of all settings but the seed: rows of several runs are one row where it is the same
    setting: str = ""


@attrs.frozen(kw_only=True)
class Row:
    """One combination of data, model, attack and defense over all seeds."""

    data: str
    model: str
    attack: str
    defense: str
    cells: tuple[Cell, ...]
    origin: Origin | None = None
    #: names of the runs that it comes from, where several runs are shown together
    run: str = ""

    def values(self, column: str) -> list[float]:
        return [value for cell in self.cells if (value := cell.value(column)) is not None]

    def mean(self, column: str) -> float | None:
        values = self.values(column)
        return statistics.fmean(values) if values else None

    def spread(self, column: str) -> float | None:
        """Sample standard deviation over seeds; None below two seeds."""
        values = self.values(column)
        return statistics.stdev(values) if len(values) > 1 else None

    @property
    def oracle(self) -> bool:
        return any(cell.oracle for cell in self.cells)

    @property
    def attack_presets(self) -> tuple[str, ...]:
        """Presets of the attack's parts that deviate from the papers' settings."""
        parts = () if self.origin is None else self.origin.attacks
        return tuple(dict.fromkeys(part.preset for part in parts if part.preset))

    @property
    def defense_preset(self) -> str:
        """The defense's preset, where it deviates from the paper's settings."""
        if self.origin is None or self.origin.defense is None:
            return ""
        return self.origin.defense.preset

    @property
    def errors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.error for cell in self.cells if cell.error))

    @property
    def seconds(self) -> float | None:
        """Mean seconds per seed, of the seeds that ran through."""
        done = [cell.cost.seconds for cell in self.cells if cell.error is None]
        return statistics.fmean(done) if done else None


@attrs.frozen(kw_only=True)
class Detection:
    """One detector's verdict on one victim."""

    data: str
    model: str
    attack: str
    detector: str
    seed: int
    score: float | None = None
    threshold: float | None = None
    detected: bool | None = None
    target: int | None = None
    #: score of an input above which the detector's filter rejects it, where it has one
    filter_threshold: float | None = None
    #: paths of its figures (PNG) in the store, by name
    figures: Mapping[str, str] = attrs.field(factory=dict)
    #: what is to be seen in them, by name
    captions: Mapping[str, str] = attrs.field(factory=dict)
    oracle: bool = False
    error: str | None = None


@attrs.frozen(kw_only=True)
class Rating:
    """How well one detector did: over a run's models, or over one victim's samples or inputs."""

    data: str
    model: str
    #: :data:`ALL_ATTACKS` over models
    attack: str
    detector: str
    #: None over models: they are of all seeds
    seed: int | None = None
    #: what was judged: ``"models"``, ``"training samples"`` or ``"inputs"``
    of: str = ""
    #: column -> {"value", "numerator", "denominator", "rule", "interval", "is_share"}
    values: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    error: str | None = None


@attrs.frozen(kw_only=True)
class Finding:
    """What one analysis found on one victim."""

    data: str
    model: str
    attack: str
    analysis: str
    seed: int
    values: Mapping[str, float | None] = attrs.field(factory=dict)
    #: paths of its figures (PNG) in the store, by name
    figures: Mapping[str, str] = attrs.field(factory=dict)
    #: what is to be seen in them, by name
    captions: Mapping[str, str] = attrs.field(factory=dict)
    #: why it was not carried out, where that is no failure
    skipped: str = ""
    error: str | None = None


@attrs.frozen(kw_only=True)
class Table:
    """All rows of a run, in the order of its recipe."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    detections: tuple[Detection, ...] = ()
    ratings: tuple[Rating, ...] = ()
    findings: tuple[Finding, ...] = ()
    attacks: tuple[AttackCost, ...] = ()

    def is_share(self, column: str) -> bool:
        """Whether a column's values are shares, to be shown in percent."""
        values = (cell.metrics.get(column, {}) for row in self.rows for cell in row.cells)
        return all(value.get("is_share", True) for value in values)

    @property
    def failed(self) -> bool:
        return (
            any(row.errors for row in self.rows)
            or any(detection.error for detection in self.detections)
            or any(rating.error for rating in self.ratings)
            or any(finding.error for finding in self.findings)
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; the keys are part of the public interface."""
        return {
            "columns": list(self.columns),
            "rows": [
                {
                    "data": row.data,
                    "model": row.model,
                    "attack": row.attack,
                    "defense": row.defense,
                    "oracle": row.oracle,
                    "origin": None if row.origin is None else attrs.asdict(row.origin),
                    "mean": {column: row.mean(column) for column in self.columns},
                    "spread": {column: row.spread(column) for column in self.columns},
                    "seeds": [attrs.asdict(cell) for cell in row.cells],
                }
                for row in self.rows
            ],
            "detections": [attrs.asdict(detection) for detection in self.detections],
            "ratings": [attrs.asdict(rating) for rating in self.ratings],
            "analyses": [attrs.asdict(finding) for finding in self.findings],
            "attacks": [attrs.asdict(cost) for cost in self.attacks],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Table:
        """The table again, from what :meth:`to_json` made of it; unknown keys are left out.

        Raises :class:`InputError` where the values are no table.
        """
        try:
            return cls(
                columns=tuple(values["columns"]),
                rows=tuple(map(_row, values["rows"])),
                detections=_all(Detection, values, "detections"),
                ratings=_all(Rating, values, "ratings"),
                findings=_all(Finding, values, "analyses"),
                attacks=_all(AttackCost, values, "attacks"),
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"it is no table of a run: {type(error).__name__}: {error}") from None

    def to_text(self) -> str:
        """Aligned plain text, as :mod:`backdoorkit.pipeline.grids` has it."""
        from backdoorkit.pipeline.grids import to_text

        return to_text(self)


def _known(cls: type[T], values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in attrs.fields_dict(cls) if key in values}  # type: ignore[arg-type]


def _all(cls: type[T], values: Mapping[str, Any], key: str) -> tuple[T, ...]:
    return tuple(cls(**_known(cls, item)) for item in values.get(key, ()))


def _row(values: Mapping[str, Any]) -> Row:
    cells = tuple(
        Cell(**(_known(Cell, seed) | {"cost": Cost.from_json(seed["cost"])}))
        for seed in values["seeds"]
    )
    origin = values.get("origin")
    made = None if origin is None else origin_from_json(origin)
    return Row(**(_known(Row, values) | {"cells": cells, "origin": made}))


def origin_from_json(values: Mapping[str, Any]) -> Origin:
    """An origin again, from what :func:`attrs.asdict` made of it."""
    defense = values["defense"]
    return Origin(
        attacks=tuple(Named(**_known(Named, part)) for part in values["attacks"]),
        defense=None if defense is None else Named(**_known(Named, defense)),
        setting=values["setting"],
    )
