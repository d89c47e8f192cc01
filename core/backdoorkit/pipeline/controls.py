"""Controls: what a table must hold beside its methods before its numbers mean much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from backdoorkit.pipeline.labels import labels
from backdoorkit.pipeline.recipe import NO_ATTACK, MethodChoice, NoOptions
from backdoorkit.pipeline.results import NO_DEFENSE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backdoorkit.hooks.registry import Method
    from backdoorkit.pipeline.recipe import ModelChoice, Recipe
    from backdoorkit.pipeline.results import Row, Table

__all__ = [
    "FINE_TUNING",
    "defense_name",
    "fine_tuning_like",
    "is_control",
    "missing_controls",
    "planned_attacks",
]

#: the defense that every other one has to beat, with the same clean images
FINE_TUNING: Final = "ft"


# -- making them -----------------------------------------------------------------------------------


def planned_attacks(recipe: Recipe, model: ModelChoice) -> Iterator[tuple[MethodChoice, str, bool]]:
    """Each attack with its label, and whether it is there as a control only.

    Where the recipe asks for controls, the clean twin comes last, unless it is among the attacks.
    A model that was trained elsewhere has none.
    """
    for attack, label in zip(recipe.attacks, labels(recipe.attacks), strict=True):
        yield attack, label, False
    has_twin = any(attack.name == NO_ATTACK for attack in recipe.attacks)
    is_made_here = recipe.victim is None and model.weights is None
    if recipe.controls and is_made_here and not has_twin:
        yield MethodChoice(name=NO_ATTACK, config=NoOptions()), NO_ATTACK, True


def fine_tuning_like(
    defenses: Sequence[MethodChoice], installed: Sequence[Method]
) -> dict[str, Any] | None:
    """Plain fine-tuning with as many epochs as the longest of ``defenses``, and its augmentation.

    None where there is nothing to compare it with, where it is among them, and where it is not
    ``installed``.
    """
    if not any(method.name == FINE_TUNING for method in installed):
        return None
    if not defenses or any(choice.name == FINE_TUNING for choice in defenses):
        return None
    trained = [choice.config for choice in defenses if hasattr(choice.config, "epochs")]
    longest = max(trained, key=lambda config: config.epochs, default=None)
    shared = ("epochs", "crop_padding", "horizontal_flip")
    values = {key: getattr(longest, key) for key in shared if hasattr(longest, key)}
    return {"name": FINE_TUNING, **values}


# -- finding them in a table -----------------------------------------------------------------------


def defense_name(row: Row) -> str:
    """The defense without the options that a label may add."""
    if row.origin is not None and row.origin.defense is not None:
        return row.origin.defense.name
    return row.defense.partition(" (")[0]


def is_control(row: Row) -> bool:
    """Whether a row is there for others to be compared with."""
    return row.attack == NO_ATTACK or defense_name(row) == FINE_TUNING


def missing_controls(table: Table) -> Iterator[str]:
    """One line for each control that the table lacks."""
    defenses = {defense_name(row) for row in table.rows if row.defense != NO_DEFENSE}
    attacks = {row.attack for row in table.rows} | {d.attack for d in table.detections}
    if defenses and FINE_TUNING not in defenses:
        yield (
            "control missing: plain fine-tuning on the same clean images, which a defense has to "
            f"beat; add the defense {FINE_TUNING!r}."
        )
    if NO_ATTACK in attacks or not attacks:
        return
    if table.detections:
        yield (
            "control missing: a clean model, without which false alarms cannot be told; add the "
            f"attack {NO_ATTACK!r}."
        )
    elif defenses:
        yield (f"control missing: the same model without an attack; add the attack {NO_ATTACK!r}.")
