"""Our rows beside those that papers have printed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

from backdoorkit.pipeline.grids import aligned, percent
from backdoorkit.pipeline.results import NO_DEFENSE, Named

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backdoorkit.hooks.published import PublishedFigures
    from backdoorkit.pipeline.results import Row

__all__ = ["Comparison", "compare", "comparison_text", "with_difference"]

#: What published tables call the clean model, and the model without a defense.
_NOTHING: Final = "none"
_LABEL: Final = re.compile(r"([^()]+?)(?: \((.*)\))?")


@attrs.frozen(kw_only=True)
class Comparison:
    """One published table, with the values that belong to each of our rows."""

    figures: PublishedFigures
    #: by number of the row in our table; rows without a counterpart are missing
    cells: Mapping[int, Mapping[str, float]]
    #: what a reader must know
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.figures.name


def comparison_text(rows: Sequence[Row], figures: PublishedFigures) -> str:
    """A section for a terminal: the rows that the paper has too, theirs and ours minus theirs."""
    found = compare(rows, figures)
    header = ["attack", "defense", *(f"{figures.name} {column}" for column in figures.columns)]
    body = [
        [rows[i].attack, rows[i].defense, *(_beside(rows[i], c, cell) for c in figures.columns)]
        for i, cell in found.cells.items()
    ]
    lines = [aligned(header, body)] if body else []
    return "\n\n".join([*lines, "\n".join(found.notes)])


def _beside(row: Row, column: str, published: Mapping[str, float]) -> str:
    theirs, ours = published.get(column), row.mean(column)
    if theirs is None:
        return "-"
    return f"{theirs:.2f}" if ours is None else with_difference(theirs, 100 * ours - theirs)


def with_difference(published: float, difference: float) -> str:
    """``91.32 (−15.47)``: theirs, and ours minus theirs in points, with a real minus."""
    text = percent(abs(difference) / 100)
    sign = "" if float(text) == 0 else ("+" if difference > 0 else "−")
    return f"{published:.2f} ({sign}{text})"


def compare(rows: Sequence[Row], figures: PublishedFigures) -> Comparison:
    """Find the published counterpart of each row, by the names of attack and defense.

    Options in brackets in the published names must be ours too; other options of ours are of no
    account, as data, architecture and training are not: the notes say what was measured.
    """
    cells: dict[int, Mapping[str, float]] = {}
    met: dict[tuple[str, str], list[Row]] = {}
    for index, row in enumerate(rows):
        key = _key(row, figures)
        if key is not None:
            cells[index] = figures.figures[key[0]][key[1]]
            met.setdefault(key, []).append(row)
    return Comparison(figures=figures, cells=cells, notes=tuple(_notes(figures, met)))


def _notes(figures: PublishedFigures, met: Mapping[tuple[str, str], Sequence[Row]]) -> list[str]:
    notes = [f"{figures.name}: {figures.source}. Measured there: {figures.setting}."]
    notes += [f"{figures.name}, correction: {text}." for text in figures.corrections]
    if not met:
        notes.append(f"{figures.name}: none of the rows here is in it.")
    for (attack, defense), alike in met.items():
        if len(alike) > 1:
            labels = "; ".join(f"{row.attack}, {row.defense}" for row in alike)
            notes.append(
                f"{figures.name}: its row {attack}, {defense} stands beside {len(alike)} rows here "
                f"({labels}), whatever their options."
            )
    return notes


def _key(row: Row, figures: PublishedFigures) -> tuple[str, str] | None:
    """Published names of the row's attack and defense."""
    ours = _ours(row)
    if ours is None:
        return None
    attack, defense = ours
    for attack_label in _fitting(attack, figures.figures):
        for defense_label in _fitting(defense, figures.figures[attack_label]):
            return attack_label, defense_label
    return None


def _ours(row: Row) -> tuple[Named, Named] | None:
    nothing = Named(name=_NOTHING)
    if row.origin is None:  # a table of an older version: labels are all there is
        defense = nothing if row.defense == NO_DEFENSE else _parsed(row.defense)
        return _parsed(row.attack), defense
    if len(row.origin.attacks) > 1:
        return None  # composed: no paper's row
    attack = row.origin.attacks[0] if row.origin.attacks else nothing
    return attack, row.origin.defense or nothing


def _fitting(ours: Named, labels: Mapping[str, object]) -> list[str]:
    """Published labels that fit, those with the most options first."""
    parsed = {label: _parsed(label) for label in labels}
    fitting = [
        label
        for label, theirs in parsed.items()
        if theirs.name == ours.name
        and all(str(ours.options.get(key)) == value for key, value in theirs.options.items())
    ]
    return sorted(fitting, key=lambda label: -len(parsed[label].options))


def _parsed(label: str) -> Named:
    """``name (option=value, option=value)`` as a table writes it."""
    match = _LABEL.fullmatch(label)
    if match is None:
        return Named(name=label)
    pairs = (part.partition("=") for part in (match[2] or "").split(", ") if "=" in part)
    return Named(name=match[1], options={key: value for key, _, value in pairs})
