"""What the names in a table stand for: methods, options, and a digest of the whole setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backdoorkit.hooks.options import unstructure
from backdoorkit.hooks.presets import deviating_preset
from backdoorkit.pipeline.keys import content_key
from backdoorkit.pipeline.recipe import NO_ATTACK, ComposedChoice, MethodChoice
from backdoorkit.pipeline.results import Named, Origin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backdoorkit.pipeline.plan import Entry

__all__ = ["origin_of"]


def origin_of(entry: Entry) -> Origin:
    """What a row's names stand for; the same for all its seeds."""
    choices = entry.victim.choices
    attack: MethodChoice = choices["attack"]
    defense: MethodChoice | None = entry.model_step.choices.get("method")
    parts = list(_parts(attack))
    data = entry.victim.inputs["data"].choices["data"]
    setting = content_key(
        data=_facts(data),
        model=_facts(choices["model"]),
        train=unstructure(choices["train"]),
        attacks=[_facts(part) for part in parts],
        defense=None if defense is None else _facts(defense),
        victim=choices["folder"].digest if "folder" in choices else None,
    )
    return Origin(
        attacks=tuple(map(_named, parts)),
        defense=None if defense is None else _named(defense),
        setting=setting[:16],
    )


def _parts(attack: MethodChoice) -> Iterator[MethodChoice]:
    if isinstance(attack, ComposedChoice):
        yield from attack.parts
    elif attack.name != NO_ATTACK:
        yield attack


def _named(choice: MethodChoice) -> Named:
    return Named(
        name=choice.name,
        options=unstructure(choice.config),
        preset=deviating_preset(choice.method, choice.config),
    )


def _facts(choice: MethodChoice) -> dict[str, Any]:
    method = choice.method
    return {**choice.to_mapping(), "from": [method.distribution, method.version]}
