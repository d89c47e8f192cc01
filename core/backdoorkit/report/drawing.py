"""Geometry of a report's vector figures: numbers for the template, which draws and escapes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.pipeline.grids import percent, varying_names
from backdoorkit.pipeline.results import NO_DEFENSE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backdoorkit.pipeline.results import Row, Table

__all__ = ["Curve", "HeatMap", "Panel", "curves", "heat_maps", "panels", "shade"]

#: Three colours that people with any colour vision tell apart: worse, nothing changed, better.
_WORSE: Final = (179, 88, 6)
_NEUTRAL: Final = (247, 247, 247)
_BETTER: Final = (5, 72, 140)
#: user units of a panel, and of the margins around its plot
PANEL: Final = (180, 156)
_LEFT, _TOP, _RIGHT, _BOTTOM = 32, 8, 8, 34
_CURVES: Final = (("loss", "training loss", 1), ("accuracy", "training accuracy %", 100))
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


# -- heat map --------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class HeatCell:
    """One rating: text, what a pointer over it tells, and colours."""

    text: str
    title: str = ""
    background: str = ""
    foreground: str = ""


@attrs.frozen(kw_only=True)
class HeatMap:
    """Ratings of each defense (columns) against each attack (rows)."""

    title: str
    defenses: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]


def heat_maps(table: Table, column: str = "DER") -> list[HeatMap]:
    """One map for each combination of data and model; none where nothing is rated."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    apart = [name for name in varying_names(table) if name not in ("attack", "defense")]
    for row in table.rows:
        if row.mean(column) is not None:
            groups.setdefault(tuple(getattr(row, name) for name in apart), []).append(row)
    return [_heat_map(", ".join(names), rows, column) for names, rows in groups.items()]


def _heat_map(title: str, rows: Sequence[Row], column: str) -> HeatMap:
    defenses = tuple(dict.fromkeys(row.defense for row in rows))
    found = {(row.attack, row.defense): row for row in rows}
    lines = []
    for attack in dict.fromkeys(row.attack for row in rows):
        cells = (_heat_cell(found.get((attack, defense)), column) for defense in defenses)
        lines.append((attack, tuple(cells)))
    return HeatMap(title=title, defenses=defenses, rows=tuple(lines))


def _heat_cell(row: Row | None, column: str) -> HeatCell:
    share = None if row is None else row.mean(column)
    if row is None or share is None:
        return HeatCell(text="-")
    background, foreground = shade(share)
    spread = row.spread(column)
    more = "" if spread is None else f" ± {percent(spread)} over {len(row.values(column))} seeds"
    return HeatCell(
        text=f"{100 * share:.1f}",
        title=f"{row.attack}, {row.defense}: {percent(share)}{more}",
        background=background,
        foreground=foreground,
    )


def shade(share: float) -> tuple[str, str]:
    """Background and text colour of a rating in [0, 1], where 0.5 is no change."""
    end = _BETTER if share >= 0.5 else _WORSE
    weight = min(1.0, abs(share - 0.5) * 2)
    mixed = [round(n + weight * (e - n)) for n, e in zip(_NEUTRAL, end, strict=True)]
    light = [_linear(value / 255) for value in mixed]
    luminance = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]
    # Whichever contrasts more.
    is_dark = (luminance + 0.05) ** 2 < 1.05 * 0.05
    return "#" + "".join(f"{value:02x}" for value in mixed), "#ffffff" if is_dark else "#000000"


def _linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


# -- accuracy against attack success ---------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Move:
    """What a defense does to one attack: from the model as it was to the repaired one."""

    letter: str
    title: str
    before: tuple[float, float] | None
    after: tuple[float, float]


@attrs.frozen(kw_only=True)
class Panel:
    """One defense against all attacks."""

    title: str
    moves: tuple[Move, ...]


@attrs.frozen(kw_only=True)
class Panels:
    """One panel per defense, all with the same axes."""

    panels: tuple[Panel, ...]
    #: letter and attack
    legend: tuple[tuple[str, str], ...]
    #: position in the panel and label
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def panels(table: Table) -> Panels | None:
    """Accuracy against attack success before and after each defense; None without defenses."""
    rows = [
        row for row in table.rows if row.mean("ASR") is not None and row.mean("ACC") is not None
    ]
    repaired = [row for row in rows if row.defense != NO_DEFENSE]
    if not repaired:
        return None
    apart = [name for name in varying_names(table) if name != "defense"]

    def victim(row: Row) -> str:
        return ", ".join(getattr(row, name) for name in reversed(apart))

    before = {victim(row): row for row in rows if row.defense == NO_DEFENSE}
    letters = {name: _letter(i) for i, name in enumerate(dict.fromkeys(map(victim, repaired)))}
    lowest = min(row.mean("ACC") or 0.0 for row in rows)
    floor = max(0, math.floor(100 * lowest / 10 - 0.3) * 10)
    place = _Place(floor)
    groups: dict[str, list[Move]] = {}
    for row in repaired:
        name = victim(row)
        groups.setdefault(row.defense, []).append(
            _move(row, before.get(name), letters[name], place)
        )
    middle = (floor + 100) / 2
    return Panels(
        panels=tuple(Panel(title=d, moves=tuple(moves)) for d, moves in groups.items()),
        legend=tuple((letter, name) for name, letter in letters.items()),
        x_ticks=tuple((place.x(v), str(v)) for v in (0, 50, 100)),
        y_ticks=tuple((place.y(v), f"{v:.0f}") for v in (floor, middle, 100)),
    )


@attrs.frozen
class _Place:
    floor: float

    def x(self, value: float) -> float:
        return round(_LEFT + (PANEL[0] - _LEFT - _RIGHT) * value / 100, 2)

    def y(self, value: float) -> float:
        share = (value - self.floor) / (100 - self.floor)
        return round(_TOP + (PANEL[1] - _TOP - _BOTTOM) * (1 - share), 2)

    def of(self, row: Row) -> tuple[float, float]:
        return self.x(100 * (row.mean("ASR") or 0.0)), self.y(100 * (row.mean("ACC") or 0.0))


def _letter(index: int) -> str:
    return _LETTERS[index] if index < len(_LETTERS) else str(index + 1)


def _move(row: Row, before: Row | None, letter: str, place: _Place) -> Move:
    title = f"{row.attack}, {row.defense}: {_numbers(row)}"
    if before is not None:
        title += f"; before: {_numbers(before)}"
    start = None if before is None else place.of(before)
    return Move(letter=letter, title=title, before=start, after=place.of(row))


def _numbers(row: Row) -> str:
    return f"ACC {percent(row.mean('ACC'))}, ASR {percent(row.mean('ASR'))}"


# -- curves ----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Curve:
    """One number by epoch, one line per seed."""

    title: str
    #: points of an SVG polyline, and what a pointer over it tells
    lines: tuple[tuple[str, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def curves(histories: Mapping[int, Sequence[Mapping[str, Any]]]) -> Iterator[Curve]:
    """Training loss and accuracy, from each seed's numbers by epoch."""
    for key, title, factor in _CURVES:
        series = {
            seed: [factor * epoch[key] for epoch in history if _is_finite(epoch.get(key))]
            for seed, history in histories.items()
        }
        series = {seed: values for seed, values in series.items() if values}
        if series:
            yield _curve(title, series)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _curve(title: str, series: Mapping[int, Sequence[float]]) -> Curve:
    longest = max(map(len, series.values()))
    lowest = min(0.0, *map(min, series.values()))
    highest = max(map(max, series.values()))
    if highest <= lowest:
        highest = lowest + 1.0

    def x(epoch: float) -> float:
        share = (epoch - 1) / max(1, longest - 1)
        return round(_LEFT + (PANEL[0] - _LEFT - _RIGHT) * share, 2)

    def y(value: float) -> float:
        share = (value - lowest) / (highest - lowest)
        return round(_TOP + (PANEL[1] - _TOP - _BOTTOM) * (1 - share), 2)

    lines = []
    for seed, values in series.items():
        points = " ".join(f"{x(i + 1)},{y(value)}" for i, value in enumerate(values))
        lines.append((points, f"seed {seed}: {values[-1]:.4g} at the end"))
    middle = (lowest + highest) / 2
    return Curve(
        title=title,
        lines=tuple(lines),
        x_ticks=tuple((x(epoch), str(epoch)) for epoch in sorted({1, longest})),
        y_ticks=tuple((y(value), f"{value:.3g}") for value in (lowest, middle, highest)),
    )
