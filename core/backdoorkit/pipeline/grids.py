"""The table of a run as text, for a terminal: sections of aligned columns, and notes below.

Shares are percent with two decimals, rounded half up; across seeds as mean ± sample standard
deviation.
"""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

from backdoorkit.pipeline.controls import missing_controls
from backdoorkit.pipeline.costs import costs_grid
from backdoorkit.pipeline.results import NOT_FINISHED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backdoorkit.pipeline.results import Detection, Finding, Rating, Row, Table

__all__ = [
    "Grid",
    "aligned",
    "blank",
    "findings_grids",
    "footnotes",
    "main_grid",
    "marked",
    "number",
    "percent",
    "rated",
    "ratings_grids",
    "to_text",
    "varying_names",
    "verdicts_grid",
    "with_spread",
]

#: header and body of a section, as text
Grid = tuple[list[str], list[list[str]]]


def to_text(table: Table) -> str:
    """Aligned plain text: a section for repaired models, one for verdicts, one per analysis, one
    for what the attacks cost.
    """
    sections = []
    if table.rows:
        sections.append(main_grid(table))
    if table.detections:
        sections.append(verdicts_grid(table.detections))
    sections += ratings_grids(table)
    sections += findings_grids(table)
    if table.attacks:
        sections.append(costs_grid(table.attacks))
    text = [aligned(header, body) for header, body in sections]
    if notes := footnotes(table):
        text.append("\n".join(notes))
    return "\n\n".join(text)


def main_grid(table: Table) -> Grid:
    """One row per attack and defense."""
    shown = varying_names(table)
    shares = {column: table.is_share(column) for column in table.columns}
    titles = (f"{column} %" if is_share else column for column, is_share in shares.items())
    body = [_cells(row, shown, shares) for row in table.rows]
    return [*shown, *titles, "seeds", "seconds"], body


def varying_names(table: Table) -> list[str]:
    """Leave out what is the same in every row, except attack and defense."""
    varying = [
        name
        for name in ("data", "model", "run")
        if len({getattr(row, name) for row in table.rows}) > 1
    ]
    return [*varying, "attack", "defense"]


def marked(row: Row, name: str) -> str:
    """What the row has in the column ``name``, with what a reader must know of it."""
    marks: tuple[str, ...] = ()
    if name == "attack":
        marks = row.attack_presets
    elif name == "defense":
        marks = (row.defense_preset, "oracle" if row.oracle else "")
    label: str = getattr(row, name)
    return label + "".join(f" ({mark})" for mark in marks if mark)


def _cells(row: Row, shown: Sequence[str], shares: Mapping[str, bool]) -> list[str]:
    names = [marked(row, name) for name in shown]
    numbers = [
        blank(row)
        if row.errors and row.mean(column) is None
        else with_spread(row, column, is_share=is_share)
        for column, is_share in shares.items()
    ]
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    done = sum(cell.error is None for cell in row.cells)
    seeds = str(done) if done == len(row.cells) else f"{done} of {len(row.cells)}"
    return [*names, *numbers, seeds, seconds]


def blank(row: Row) -> str:
    """What stands where a row without any result has its numbers."""
    return "pending" if row.errors == (NOT_FINISHED,) else "failed"


def verdicts_grid(detections: Sequence[Detection]) -> Grid:
    """One row per detector and model."""
    header = ["attack", "detector", "seed", "score", "threshold", "verdict", "target"]
    return header, [_verdict(detection) for detection in detections]


def ratings_grids(table: Table) -> list[Grid]:
    """What was judged over models, over samples, over inputs."""
    by_kind: dict[str, list[Rating]] = {}
    for rating in table.ratings:
        by_kind.setdefault(rating.of, []).append(rating)
    return [_ratings_grid(ratings) for ratings in by_kind.values()]


def findings_grids(table: Table) -> list[Grid]:
    """Each analysis that was carried out anywhere."""
    by_analysis: dict[str, list[Finding]] = {}
    for finding in table.findings:
        if not finding.skipped:
            by_analysis.setdefault(finding.analysis, []).append(finding)
    return [_findings_grid(findings) for findings in by_analysis.values()]


def footnotes(table: Table) -> list[str]:
    """What a reader must know of marked and failed cells, and of controls that are missing."""
    return list(dict.fromkeys(_notes(table)))


def _notes(table: Table) -> Iterator[str]:
    if any(row.oracle for row in table.rows):
        yield "oracle: a level was chosen on test attack success; no defender can."
    presets = (p for row in table.rows for p in (*row.attack_presets, row.defense_preset) if p)
    for preset in dict.fromkeys(presets):
        yield f"{preset}: a preset that deviates from the paper's settings."
    for cost in table.attacks:
        if cost.chose_test_images:
            yield f"{cost.attack}: the attacker chose among the test images."
    for row in table.rows:
        for error in row.errors:
            yield _failure(f"{row.attack}, {row.defense}", error)
    for d in table.detections:
        if d.error:
            yield _failure(f"{d.attack}, {d.detector}", d.error)
    for r in table.ratings:
        if r.error:
            yield _failure(f"rating of {r.detector}, {r.attack}", r.error)
    for f in table.findings:
        if f.error:
            yield _failure(f"{f.attack}, {f.analysis}", f.error)
        if f.skipped:
            yield f"skipped: {f.attack}, {f.analysis}: {f.skipped}"
    yield from missing_controls(table)


def _failure(what: str, error: str) -> str:
    return f"not finished: {what}" if error == NOT_FINISHED else f"failed: {what}: {error}"


def percent(share: float | None) -> str:
    """A share in [0, 1] as percent with two decimals, rounded half up; a dash where undefined."""
    if share is None or math.isnan(share):
        return "-"
    # repr first: Decimal(0.00125) would see the binary value just below the half.
    return str((Decimal(repr(share)) * 100).quantize(Decimal("0.01"), ROUND_HALF_UP))


_TEXT_COLUMNS = (
    *("data", "model", "run", "attack", "defense", "detector", "rated over"),
    *("analysis", "seed", "score"),
)


def _ratings_grid(ratings: Sequence[Rating]) -> Grid:
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
            *("failed" if rating.error else rated(rating.values.get(c)) for c in columns),
        ]
        for rating in ratings
    ]
    return header, body


def rated(value: Mapping[str, Any] | None) -> str:
    """A value with its confidence interval, in percent where it is a share."""
    if value is None or value["value"] is None:
        return "-"
    show = percent if value["is_share"] else number
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


def _findings_grid(findings: Sequence[Finding]) -> Grid:
    varying = [name for name in ("data", "model") if len({getattr(f, name) for f in findings}) > 1]
    shown = [*varying, "attack", "analysis", "seed"]
    columns = list(dict.fromkeys(name for finding in findings for name in finding.values))
    body = [
        [str(getattr(finding, name)) for name in shown]
        + ["failed" if finding.error else number(finding.values.get(name)) for name in columns]
        for finding in findings
    ]
    return [*shown, *columns], body


def number(value: float | None) -> str:
    """A number of an analysis with four significant digits; a dash where it is undefined."""
    return "-" if value is None else f"{value:.4g}"


def with_spread(row: Row, column: str, *, is_share: bool = True) -> str:
    """The mean over seeds, and its spread where there are several."""
    show = percent if is_share else number
    mean, spread = row.mean(column), row.spread(column)
    return show(mean) if spread is None else f"{show(mean)} ± {show(spread)}"


def aligned(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Columns of text to the left, of numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    text_columns = sum(name in _TEXT_COLUMNS for name in header)

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if index < text_columns else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, body)])
