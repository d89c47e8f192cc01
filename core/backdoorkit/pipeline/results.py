"""The table a run ends in: one row per attack and defense, one column per metric.

Shares are printed as percent with two decimals, rounded half up; across seeds as mean ± sample
standard deviation.
"""

from __future__ import annotations

import math
import statistics
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

import attrs

from backdoorkit.pipeline.costs import AttackCost, costs_grid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ALL_ATTACKS",
    "NO_DEFENSE",
    "AttackCost",
    "Cell",
    "Cost",
    "Detection",
    "Finding",
    "Rating",
    "Row",
    "Table",
    "percent",
]

#: Label of the row that rates a detector over all models of a run.
ALL_ATTACKS = "all"
#: Label of the row that shows the model as it was, before any defense.
NO_DEFENSE = "no defense"


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
class Row:
    """One combination of data, model, attack and defense over all seeds."""

    data: str
    model: str
    attack: str
    defense: str
    cells: tuple[Cell, ...]

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

    def to_text(self) -> str:
        """Aligned plain text: a section for repaired models, one for verdicts, one per analysis,
        one for what the attacks cost.
        """
        sections = []
        if self.rows:
            sections.append(_align(self._header(), [self._cells(row) for row in self.rows]))
        if self.detections:
            sections.append(_align(_DETECTION_HEADER, [_verdict(d) for d in self.detections]))
        sections += [_align(header, body) for header, body in self.ratings_grids()]
        sections += [_align(header, body) for header, body in self.findings_grids()]
        if self.attacks:
            sections.append(_align(*self.attacks_grid()))
        if notes := self.footnotes():
            sections.append("\n".join(notes))
        return "\n\n".join(sections)

    def grid(self) -> tuple[list[str], list[list[str]]]:
        """Header and body of the main section as text, for other renderings."""
        return self._header(), [self._cells(row) for row in self.rows]

    def ratings_grids(self) -> list[tuple[list[str], list[list[str]]]]:
        """Header and body, as text: of what was judged over models, over samples, over inputs."""
        by_kind: dict[str, list[Rating]] = {}
        for rating in self.ratings:
            by_kind.setdefault(rating.of, []).append(rating)
        return [_ratings_grid(ratings) for ratings in by_kind.values()]

    def findings_grids(self) -> list[tuple[list[str], list[list[str]]]]:
        """Header and body, as text, of each analysis that was carried out anywhere."""
        by_analysis: dict[str, list[Finding]] = {}
        for finding in self.findings:
            if not finding.skipped:
                by_analysis.setdefault(finding.analysis, []).append(finding)
        return [_findings_grid(findings) for findings in by_analysis.values()]

    def attacks_grid(self) -> tuple[list[str], list[list[str]]]:
        """Header and body, as text, of what each attack cost, on average over its seeds."""
        return costs_grid(self.attacks)

    def _shown(self) -> list[str]:
        """Leave out what is the same in every row, except attack and defense."""
        varying = [
            name for name in ("data", "model") if len({getattr(r, name) for r in self.rows}) > 1
        ]
        return [*varying, "attack", "defense"]

    def _header(self) -> list[str]:
        return [*self._shown(), *(f"{column} %" for column in self.columns), "seeds", "seconds"]

    def _cells(self, row: Row) -> list[str]:
        names = [getattr(row, name) for name in self._shown()]
        if row.oracle:
            names[-1] += " (oracle)"
        numbers = [
            "failed" if row.errors and row.mean(column) is None else _with_spread(row, column)
            for column in self.columns
        ]
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        done = sum(cell.error is None for cell in row.cells)
        seeds = str(done) if done == len(row.cells) else f"{done} of {len(row.cells)}"
        return [*names, *numbers, seeds, seconds]

    def footnotes(self) -> list[str]:
        """What a reader must know of marked and failed cells."""
        notes = []
        if any(row.oracle for row in self.rows):
            notes.append("oracle: a level was chosen on test attack success; no defender can.")
        notes.extend(
            f"{cost.attack}: the attacker chose among the test images."
            for cost in self.attacks
            if cost.chose_test_images
        )
        for row in self.rows:
            notes.extend(f"failed: {row.attack}, {row.defense}: {error}" for error in row.errors)
        for d in self.detections:
            if d.error:
                notes.append(f"failed: {d.attack}, {d.detector}: {d.error}")
        for r in self.ratings:
            if r.error:
                notes.append(f"failed: rating of {r.detector}, {r.attack}: {r.error}")
        for f in self.findings:
            if f.error:
                notes.append(f"failed: {f.attack}, {f.analysis}: {f.error}")
            if f.skipped:
                notes.append(f"skipped: {f.attack}, {f.analysis}: {f.skipped}")
        return list(dict.fromkeys(notes))


def percent(share: float | None) -> str:
    """A share in [0, 1] as percent with two decimals, rounded half up; a dash where undefined."""
    if share is None or math.isnan(share):
        return "-"
    # repr first: Decimal(0.00125) would see the binary value just below the half.
    return str((Decimal(repr(share)) * 100).quantize(Decimal("0.01"), ROUND_HALF_UP))


_TEXT_COLUMNS = (
    *("data", "model", "attack", "defense", "detector", "rated over"),
    *("analysis", "seed", "score"),
)
_DETECTION_HEADER = ["attack", "detector", "seed", "score", "threshold", "verdict", "target"]


def _ratings_grid(ratings: Sequence[Rating]) -> tuple[list[str], list[list[str]]]:
    varying = [name for name in ("data", "model") if len({getattr(r, name) for r in ratings}) > 1]
    columns: dict[str, bool] = {}
    for rating in ratings:
        columns.update({name: value["is_share"] for name, value in rating.values.items()})
    header = [*varying, "detector", "rated over", "attack", "seed"]
    header += [f"{name} %" if is_share else name for name, is_share in columns.items()]
    body = [
        [
            *(getattr(rating, name) for name in varying),
            *(rating.detector, rating.of, rating.attack),
            "all" if rating.seed is None else str(rating.seed),
            *("failed" if rating.error else _rated(rating.values.get(c)) for c in columns),
        ]
        for rating in ratings
    ]
    return header, body


def _rated(value: Mapping[str, Any] | None) -> str:
    """A value with its confidence interval, in percent where it is a share."""
    if value is None or value["value"] is None:
        return "-"
    show = percent if value["is_share"] else _number
    if value["interval"] is None:
        return show(value["value"])
    low, high = (("?" if end is None else show(end)) for end in value["interval"])
    return f"{show(value['value'])} [{low}, {high}]"


def _verdict(detection: Detection) -> list[str]:
    verdict = {True: "backdoored", False: "clean", None: "-"}[detection.detected]
    return [
        detection.attack,
        detection.detector,
        str(detection.seed),
        "failed" if detection.error else _score(detection.score),
        _score(detection.threshold),
        verdict,
        "-" if detection.target is None else str(detection.target),
    ]


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _findings_grid(findings: Sequence[Finding]) -> tuple[list[str], list[list[str]]]:
    varying = [name for name in ("data", "model") if len({getattr(f, name) for f in findings}) > 1]
    shown = [*varying, "attack", "analysis", "seed"]
    columns = list(dict.fromkeys(name for finding in findings for name in finding.values))
    body = [
        [str(getattr(finding, name)) for name in shown]
        + ["failed" if finding.error else _number(finding.values.get(name)) for name in columns]
        for finding in findings
    ]
    return [*shown, *columns], body


def _number(value: float | None) -> str:
    """A number of an analysis with four significant digits; a dash where it is undefined."""
    return "-" if value is None else f"{value:.4g}"


def _with_spread(row: Row, column: str) -> str:
    mean, spread = row.mean(column), row.spread(column)
    return percent(mean) if spread is None else f"{percent(mean)} ± {percent(spread)}"


def _align(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    text_columns = sum(name in _TEXT_COLUMNS for name in header)

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if index < text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, body)])
