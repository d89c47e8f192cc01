"""Several runs as one table: seeds of the same setting united, what differs kept apart by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import InputError
from backdoorkit.pipeline.results import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backdoorkit.pipeline.results import Cell, Row
    from backdoorkit.report.runs import StoredRun

__all__ = ["merged", "run_names"]

#: What of a run's recipe says nothing about its results.
_NOT_A_SETTING: Final = (
    *("name", "seeds", "device", "threads", "executor", "jobs", "published", "observers"),
    *("attacks", "defenses", "detectors", "analyses", "metrics"),
)


def run_names(runs: Sequence[StoredRun]) -> list[str]:
    """What tells the runs apart: their recipes' names, or their folders' where these are alike."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [run.directory.name for run in runs]


def merged(runs: Sequence[StoredRun]) -> tuple[Table, list[str]]:
    """One table of all runs, and what a reader must know about how they were put together.

    Raises
    ------
    InputError
        where two runs say different things of one row and seed in the same setting, or where one
        folder is given twice.

    """
    if len({run.directory for run in runs}) < len(runs):
        raise InputError("the same run is given twice; leave one out")
    if len(runs) == 1:
        return runs[0].table, []
    names = run_names(runs)
    rows = _rows(runs, names)
    differing = _differing(runs, names) if any(row.run for row in rows) else []
    parts: dict[str, list[Any]] = {}
    for key in ("detections", "ratings", "findings", "attacks"):
        parts[key] = _others([(n, getattr(r.table, key)) for n, r in zip(names, runs, strict=True)])
    table = Table(
        columns=tuple(dict.fromkeys(c for run in runs for c in run.table.columns)),
        rows=tuple(rows),
        **{key: tuple(value) for key, value in parts.items()},
    )
    return table, differing


def _rows(runs: Sequence[StoredRun], names: Sequence[str]) -> list[Row]:
    found: dict[tuple[str, ...], dict[str, list[tuple[str, Row]]]] = {}
    for name, run in zip(names, runs, strict=True):
        for row in run.table.rows:
            label = (row.data, row.model, row.attack, row.defense)
            setting = _setting(run, row)
            found.setdefault(label, {}).setdefault(setting, []).append((name, row))
    are_apart = any(len(settings) > 1 for settings in found.values())
    return [
        _united(alike, are_apart=are_apart)
        for settings in found.values()
        for alike in settings.values()
    ]


def _setting(run: StoredRun, row: Row) -> str:
    """The same where rows may be united."""
    if row.origin is not None and row.origin.setting:
        return row.origin.setting
    # A table of an older version: its rows are united with none of another run.
    return str(run.directory)


def _united(alike: Sequence[tuple[str, Row]], *, are_apart: bool) -> Row:
    cells: dict[int, tuple[str, Cell]] = {}
    for name, row in alike:
        for cell in row.cells:
            other = cells.get(cell.seed)
            if other is None or (other[1].error and not cell.error):
                cells[cell.seed] = (name, cell)
            elif not cell.error:
                _refuse_contradiction(row, (other[0], other[1]), (name, cell))
                metrics = {**cell.metrics, **other[1].metrics}
                cells[cell.seed] = (other[0], attrs.evolve(other[1], metrics=metrics))
    first = alike[0][1]
    ordered = tuple(cell for _, (_, cell) in sorted(cells.items()))
    run = ", ".join(dict.fromkeys(name for name, _ in alike)) if are_apart else ""
    return attrs.evolve(first, cells=ordered, run=run)


def _refuse_contradiction(row: Row, one: tuple[str, Cell], two: tuple[str, Cell]) -> None:
    for column in one[1].metrics.keys() & two[1].metrics.keys():
        first, second = one[1].value(column), two[1].value(column)
        if first != second:
            raise InputError(
                f"{row.attack}, {row.defense}, seed {one[1].seed}: in the same setting {column} is "
                f"{first} in the run {one[0]} and {second} in {two[0]}; leave one of them out"
            )


def _others(parts: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
    """Verdicts, ratings, findings, costs: once where equal, named after their run otherwise."""
    found: dict[tuple[Any, ...], Any] = {}
    for name, items in parts:
        for item in items:
            first = found.setdefault(_identity(item), item)
            if first is not item and _result(first) != _result(item):
                named = attrs.evolve(item, attack=f"{item.attack} [{name}]")
                found[_identity(named)] = named
    return list(found.values())


def _identity(item: Any) -> tuple[Any, ...]:
    names = ("data", "model", "attack", "detector", "analysis", "of", "seed")
    return (type(item), *(getattr(item, name, None) for name in names))


def _result(item: Any) -> dict[str, Any]:
    """Without what is measured anew each time, and without where files lie."""
    return {
        key: value
        for key, value in attrs.asdict(item).items()
        if key != "figures" and not key.endswith("_seconds")
    }


# -- what differs ----------------------------------------------------------------------------------


def _differing(runs: Sequence[StoredRun], names: Sequence[str]) -> list[str]:
    """A line for each setting that is not the same in all runs."""
    settings = [_settings(run) for run in runs]
    options = [_options(run) for run in runs]
    shared = [key for key in options[0] if all(key in values for values in options)]
    keys = list(dict.fromkeys(key for values in settings for key in values))
    columns = {key: [values.get(key) for values in settings] for key in keys}
    columns |= {key: [values[key] for values in options] for key in shared}
    lines = []
    for key, values in columns.items():
        if any(value != values[0] for value in values):
            shown = ", ".join(f"{n}: {_shown(v)}" for n, v in zip(names, values, strict=True))
            lines.append(f"runs differ in {key} ({shown}).")
    return lines


def _settings(run: StoredRun) -> dict[str, Any]:
    """What the recipe says of data, model and training."""
    recipe = run.record.get("recipe")
    return {
        path: leaf
        for key, value in (recipe.items() if isinstance(recipe, dict) else ())
        if key not in _NOT_A_SETTING
        for path, leaf in _leaves(key, value).items()
    }


def _options(run: StoredRun) -> dict[str, Any]:
    """What the rows' methods are set to, by ``method.option``."""
    options: dict[str, Any] = {}
    for row in run.table.rows:
        if row.origin is not None:
            defense = () if row.origin.defense is None else (row.origin.defense,)
            for named in (*row.origin.attacks, *defense):
                options |= {f"{named.name}.{key}": value for key, value in named.options.items()}
    return options


def _leaves(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for key, item in value.items() for k, v in _leaves(f"{path}.{key}", item).items()}


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
