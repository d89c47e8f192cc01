"""Controls: what a table must hold beside its methods before its numbers mean much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backdoorkit.pipeline.results import NO_DEFENSE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backdoorkit.pipeline.results import Row, Table

__all__ = ["CLEAN_TWIN", "FINE_TUNING", "is_control", "missing_controls"]

#: the attack that stands for none: the same model trained on clean data
CLEAN_TWIN: Final = "none"
#: the defense that every other one has to beat, with the same clean images
FINE_TUNING: Final = "ft"


def defense_name(row: Row) -> str:
    """The defense without the options that a label may add."""
    if row.origin is not None and row.origin.defense is not None:
        return row.origin.defense.name
    return row.defense.partition(" (")[0]


def is_control(row: Row) -> bool:
    """Whether a row is there for others to be compared with."""
    return row.attack == CLEAN_TWIN or defense_name(row) == FINE_TUNING


def missing_controls(table: Table) -> Iterator[str]:
    """One line for each control that the table lacks."""
    defenses = {defense_name(row) for row in table.rows if row.defense != NO_DEFENSE}
    attacks = {row.attack for row in table.rows} | {d.attack for d in table.detections}
    if defenses and FINE_TUNING not in defenses:
        yield (
            "control missing: plain fine-tuning on the same clean images, which a defense has to "
            f"beat; add the defense {FINE_TUNING!r}."
        )
    if CLEAN_TWIN in attacks or not attacks:
        return
    if table.detections:
        yield (
            "control missing: a clean model, without which false alarms cannot be told; add the "
            f"attack {CLEAN_TWIN!r}."
        )
    elif defenses:
        yield (f"control missing: the same model without an attack; add the attack {CLEAN_TWIN!r}.")
