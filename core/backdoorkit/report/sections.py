"""What a report shows, before it becomes HTML, Markdown, CSV or LaTeX: sections of columns."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.pipeline import grids
from backdoorkit.pipeline.controls import is_control
from backdoorkit.pipeline.costs import costs_grid
from backdoorkit.pipeline.results import NO_DEFENSE
from backdoorkit.report.comparing import with_difference

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backdoorkit.pipeline.results import Cell, Row, Table
    from backdoorkit.report.comparing import Comparison

__all__ = ["SECTIONS", "Column", "Line", "Section", "Value", "make_sections"]

#: Names of sections, as ``--section`` takes them.
SECTIONS: Final = ("results", "averages", "verdicts", "ratings", "analyses", "costs")
_MEBIBYTE: Final = 1 << 20
_TEXTS: Final = frozenset(
    {
        *("data", "model", "run", "attack", "defense", "detector", "analysis"),
        *("rated over", "verdict"),
    }
)


@attrs.frozen(kw_only=True)
class Column:
    """One column of a section."""

    name: str
    is_text: bool = False
    has_spread: bool = False
    #: published table that the values are from, and the metric that they belong to
    source: str = ""
    metric: str = ""

    @property
    def title(self) -> str:
        return f"{self.source} {self.metric}" if self.source else self.name


@attrs.frozen
class Value:
    """One cell: how it is read, and the numbers behind it."""

    text: str
    #: in percent where the column is; None where there is no number
    number: float | None = None
    spread: float | None = None
    #: ours minus the published one, in points
    difference: float | None = None


@attrs.frozen(kw_only=True)
class Line:
    """One row of a section."""

    values: tuple[Value, ...]
    #: ``baseline`` without a defense, ``control``, or nothing
    kind: str = ""
    #: the same by seed
    seeds: tuple[tuple[Value, ...], ...] = ()


@attrs.frozen(kw_only=True)
class Section:
    """A table with a title."""

    name: str
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    note: str = ""


def make_sections(table: Table, comparisons: Sequence[Comparison]) -> list[Section]:
    """All sections that the table has something for."""
    sections = []
    if table.rows:
        sections.append(_results(table, comparisons))
        sections += _averages(table, comparisons)
    if table.detections:
        grid = grids.verdicts_grid(table.detections)
        sections.append(_of_grid("verdicts", "Verdicts", grid))
    sections += [
        _of_grid("ratings", "How well the detectors did", grid)
        for grid in grids.ratings_grids(table)
    ]
    sections += [
        _of_grid("analyses", f"Analysis: {_named(grid, 'analysis')}", grid)
        for grid in grids.findings_grids(table)
    ]
    if table.attacks:
        note = (
            "On average over seeds. Assets (surrogates, encoders, searched patterns) count with "
            "what they took when they were made."
        )
        grid = costs_grid(table.attacks)
        sections.append(_of_grid("costs", "What the attacks cost", grid, note))
    return sections


# -- results ---------------------------------------------------------------------------------------


def _results(table: Table, comparisons: Sequence[Comparison]) -> Section:
    shown = grids.varying_names(table)
    columns = [Column(name=name, is_text=True) for name in shown]
    columns += [Column(name=_title(table, m), has_spread=True) for m in table.columns]
    published = _published(table, comparisons)
    columns += [
        Column(name=f"{c.name} {metric}", source=c.name, metric=metric) for c, metric in published
    ]
    columns += [Column(name=name) for name in _COST_COLUMNS]
    columns.append(Column(name="seeds"))
    lines = []
    for index, row in enumerate(table.rows):
        names = tuple(Value(grids.marked(row, name)) for name in shown)
        beside = tuple(_beside(row, metric, c, index) for c, metric in published)
        done = [cell for cell in row.cells if cell.error is None]
        values = (*names, *(_mean(row, metric, table) for metric in table.columns), *beside)
        lines.append(
            Line(
                values=(*values, *_costs(done), _seeds(row, len(done))),
                kind=_kind(row),
                seeds=tuple(_one_seed(row, cell, names, table, len(beside)) for cell in row.cells),
            )
        )
    return Section(name="results", title="Results", columns=tuple(columns), lines=tuple(lines))


def _published(table: Table, comparisons: Sequence[Comparison]) -> list[tuple[Comparison, str]]:
    """Published tables with each metric that they and we have."""
    return [
        (comparison, metric)
        for comparison in comparisons
        for metric in table.columns
        if table.is_share(metric) and any(metric in cell for cell in comparison.cells.values())
    ]


def _kind(row: Row) -> str:
    if row.defense == NO_DEFENSE:
        return "baseline"
    return "control" if is_control(row) else ""


def _title(table: Table, metric: str) -> str:
    return f"{metric} %" if table.is_share(metric) else metric


def _mean(row: Row, metric: str, table: Table) -> Value:
    mean, spread = row.mean(metric), row.spread(metric)
    if mean is None:
        return Value(grids.blank(row) if row.errors else "-")
    is_share = table.is_share(metric)
    factor = 100 if is_share else 1
    text = grids.with_spread(row, metric, is_share=is_share)
    return Value(text, factor * mean, None if spread is None else factor * spread)


def _beside(row: Row, metric: str, comparison: Comparison, index: int) -> Value:
    published = comparison.cells.get(index, {}).get(metric)
    if published is None:
        return Value("-")
    mean = row.mean(metric)
    if mean is None:
        return Value(f"{published:.2f}", published)
    difference = 100 * mean - published
    return Value(with_difference(published, difference), published, None, difference)


_COST_COLUMNS: Final = (
    *("clean samples", "samples seen", "gradient steps", "seconds", "peak MiB"),
)


def _costs(cells: Sequence[Cell]) -> tuple[Value, ...]:
    """Means over the seeds that ran through."""
    if not cells:
        return (Value("-"),) * len(_COST_COLUMNS)
    mean = statistics.fmean
    return (
        _count(mean(cell.clean_samples for cell in cells)),
        _count(mean(cell.cost.samples_seen for cell in cells)),
        _count(mean(cell.cost.gradient_steps for cell in cells)),
        _decimal(mean(cell.cost.seconds for cell in cells)),
        _count(mean(cell.cost.peak_memory_bytes for cell in cells) / _MEBIBYTE),
    )


def _count(number: float) -> Value:
    return Value(f"{number:,.0f}", number)


def _decimal(number: float) -> Value:
    return Value(f"{number:,.1f}", number)


def _seeds(row: Row, done: int) -> Value:
    return Value(str(done) if done == len(row.cells) else f"{done} of {len(row.cells)}", done)


def _one_seed(
    row: Row, cell: Cell, names: tuple[Value, ...], table: Table, published: int
) -> tuple[Value, ...]:
    alone = attrs.evolve(row, cells=(cell,))
    done = [] if cell.error else [cell]
    numbers = [_mean(alone, metric, table) for metric in table.columns]
    blank = (Value("-"),) * published
    return (*names, *numbers, *blank, *_costs(done), Value(f"seed {cell.seed}", cell.seed))


# -- averages --------------------------------------------------------------------------------------


def _averages(table: Table, comparisons: Sequence[Comparison]) -> Iterator[Section]:
    """Each defense over all attacks, where there are several; the clean twin is none."""
    attacked = [
        (index, row)
        for index, row in enumerate(table.rows)
        if row.origin is None or row.origin.attacks
    ]
    keys = [name for name in grids.varying_names(table) if name != "attack"]
    groups: dict[tuple[str, ...], list[tuple[int, Row]]] = {}
    for index, row in attacked:
        groups.setdefault(tuple(getattr(row, key) for key in keys), []).append((index, row))
    most = max((len(group) for group in groups.values()), default=0)
    if most < 2:
        return
    columns = [Column(name=key, is_text=True) for key in keys]
    columns += [Column(name=_title(table, metric)) for metric in table.columns]
    published = _published(table, comparisons)
    columns += [
        Column(name=f"{c.name} {metric}", source=c.name, metric=metric) for c, metric in published
    ]
    columns.append(Column(name="attacks"))
    lines = []
    for group in groups.values():
        rows = [row for _, row in group]
        shown = next((row for row in rows if row.oracle), rows[0])
        values = [Value(grids.marked(shown, key)) for key in keys]
        values += [_average(rows, metric, table) for metric in table.columns]
        values += [_published_average(group, metric, c) for c, metric in published]
        done = sum(any(row.values(metric) for metric in table.columns) for row in rows)
        text = str(done) if done == len(rows) else f"{done} of {len(rows)}"
        kind = _kind(rows[0])
        lines.append(Line(values=(*values, Value(text, done)), kind=kind))
    yield Section(
        name="averages",
        title="Averages over attacks",
        columns=tuple(columns),
        lines=tuple(lines),
        note="Means of the rows above, each attack weighing the same; without the clean twin.",
    )


def _average(rows: Sequence[Row], metric: str, table: Table) -> Value:
    known = [mean for row in rows if (mean := row.mean(metric)) is not None]
    if not known:
        return Value("-")
    mean = statistics.fmean(known)
    if not table.is_share(metric):
        return Value(grids.number(mean), mean)
    return Value(grids.percent(mean), 100 * mean)


def _published_average(
    group: Sequence[tuple[int, Row]], metric: str, comparison: Comparison
) -> Value:
    """Over the attacks that both have; nothing where one of ours is not in the table."""
    theirs = [comparison.cells.get(index, {}).get(metric) for index, _ in group]
    ours = [row.mean(metric) for _, row in group]
    published = [value for value in theirs if value is not None]
    if len(published) < len(theirs):
        return Value("-")
    mean = statistics.fmean(published)
    known = [share for share in ours if share is not None]
    if len(known) < len(ours):
        return Value(f"{mean:.2f}", mean)
    difference = 100 * statistics.fmean(known) - mean
    return Value(with_difference(mean, difference), mean, None, difference)


# -- sections that are text already ----------------------------------------------------------------


def _of_grid(name: str, title: str, grid: grids.Grid, note: str = "") -> Section:
    header, body = grid
    return Section(
        name=name,
        title=title,
        columns=tuple(Column(name=column, is_text=column in _TEXTS) for column in header),
        lines=tuple(Line(values=tuple(map(_read, cells))) for cells in body),
        note=note,
    )


def _read(text: str) -> Value:
    """The number that a text begins with, for sorting."""
    try:
        return Value(text, float(text.split(" ")[0]))
    except ValueError:
        return Value(text)


def _named(grid: grids.Grid, column: str) -> Any:
    header, body = grid
    return body[0][header.index(column)]
