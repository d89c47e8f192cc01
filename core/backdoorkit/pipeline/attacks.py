"""The attack of a victim: its parts, what they are given, and what they plant in test images.

A plain attack is one part. A composed one is several, each with a trigger and a label map of its
own; they poison one after the other, and none touches what another has altered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch

import backdoorkit
from backdoorkit.data.choosing import NOT_ATTACKED
from backdoorkit.data.poison import apply_trigger
from backdoorkit.hooks.info import Need
from backdoorkit.pipeline.labels import labels
from backdoorkit.pipeline.recipe import ComposedChoice
from backdoorkit.pipeline.shelf import StoreShelf

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from backdoorkit.context import Context
    from backdoorkit.contracts import Attack, Trigger
    from backdoorkit.data.images import ImageSet
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.recipe import MethodChoice
    from backdoorkit.pipeline.workshop import Workshop

__all__ = [
    "Part",
    "Planted",
    "attack_context",
    "attack_parts",
    "part_choices",
    "plant_covers",
    "plant_triggers",
    "plant_wanted",
    "restored_triggers",
    "stored_triggers",
]


@attrs.frozen(kw_only=True, eq=False)
class Part:
    """One attack of those that a victim suffers."""

    choice: MethodChoice
    #: tells it from the other parts
    label: str
    #: its number, from 0, among several; None where it is the only one
    number: int | None
    attack: Attack[Any]

    @property
    def stream(self) -> str:
        """What its random numbers are named after: two parts of one name draw different ones."""
        name = self.choice.name
        return name if self.number is None else f"{name} {self.number}"


@attrs.frozen(kw_only=True, eq=False)
class Planted:
    """Test images as an attacker shows them to the model; of several parts, one after the other."""

    #: labels are the true ones
    images: ImageSet
    #: int64, N: the class that the attacker wants, -1 where it attacks no such image
    targets: Tensor
    #: int64, N: number of the part
    parts: Tensor
    #: of the parts
    names: tuple[str, ...]


def part_choices(choice: MethodChoice) -> tuple[MethodChoice, ...]:
    """The attacks that a choice of the recipe stands for."""
    return choice.parts if isinstance(choice, ComposedChoice) else (choice,)


def attack_parts(workshop: Workshop, choice: MethodChoice) -> tuple[Part, ...]:
    """The attacks themselves."""
    choices = part_choices(choice)
    return tuple(
        Part(
            choice=part,
            label=label,
            number=None if len(choices) == 1 else number,
            attack=workshop.registry.create(part.method, part.config),
        )
        for number, (part, label) in enumerate(zip(choices, labels(choices), strict=True))
    )


def attack_context(workshop: Workshop, step: Step, part: Part) -> Context:
    """Surroundings of a part in one step: with a shelf for its assets.

    Test images are in it only where the attack declares that it chooses among them.
    """
    data, method = step.inputs["data"], part.choice.method
    chooses = Need.TEST_DATA in method.info.needs
    shelf = StoreShelf(
        workshop.store,
        {
            "core": backdoorkit.__version__,
            "distribution": method.distribution,
            "version": method.version,
            "stream": part.stream,
            "seed": step.seed,
            "data": data.key,
        },
    )
    return workshop.context(
        step,
        part.stream,
        shelf=shelf,
        test_data=(lambda: workshop.part(data, "test")) if chooses else None,
    )


# -- triggers as tensors ---------------------------------------------------------------------------


def stored_triggers(parts: Iterable[Part], triggers: Iterable[Trigger]) -> dict[str, Tensor]:
    """The tensors of all triggers, for one file."""
    return {
        f"{_prefix(part)}{name}": value
        for part, trigger in zip(parts, triggers, strict=True)
        for name, value in trigger.state().items()
    }


def restored_triggers(
    parts: Iterable[Part], tensors: Mapping[str, Tensor], device: torch.device
) -> tuple[Trigger, ...]:
    """The triggers again."""
    return tuple(
        part.attack.restore(
            {
                name.removeprefix(_prefix(part)): value.to(device)
                for name, value in tensors.items()
                if name.startswith(_prefix(part))
            }
        )
        for part in parts
    )


def _prefix(part: Part) -> str:
    return "" if part.number is None else f"{part.number}."


# -- images that the attacker shows ----------------------------------------------------------------


def plant_triggers(
    parts: tuple[Part, ...], triggers: tuple[Trigger, ...], images: ImageSet
) -> Planted:
    """All ``images`` once with the trigger of each part."""
    return _planted(parts, dict(enumerate(triggers)), triggers, images)


def plant_covers(
    parts: tuple[Part, ...], triggers: tuple[Trigger, ...], images: ImageSet
) -> Planted | None:
    """All ``images`` as covers of each part that makes its own sort; None where none does."""
    covers = {
        number: cover
        for number, (part, trigger) in enumerate(zip(parts, triggers, strict=True))
        if part.attack.config.cover_ratio and (cover := part.attack.cover(trigger)) is not None
    }
    return _planted(parts, covers, triggers, images) if covers else None


def plant_wanted(
    parts: tuple[Part, ...], triggers: tuple[Trigger, ...], images: ImageSet
) -> ImageSet:
    """Triggered ``images`` under the labels that the attacker wants; the parts take turns.

    Images that are not attacked, or bear that label already, are left out.
    """
    turns = torch.arange(len(images), device=images.device) % len(parts)
    wanted = torch.full_like(images.labels, NOT_ATTACKED)
    pixels = images.images.clone()
    for number, (part, trigger) in enumerate(zip(parts, triggers, strict=True)):
        mine = (turns == number).nonzero().flatten()
        labels_, ids = images.labels[mine], images.ids[mine]
        pixels[mine] = apply_trigger(trigger, images.fetch(mine), labels_, ids)
        wanted[mine] = part.attack.wanted_labels(trigger, labels_, ids, images.num_classes)
    attacked = ((wanted != NOT_ATTACKED) & (wanted != images.labels)).nonzero().flatten()
    some = images.subset(attacked)
    everywhere = torch.arange(len(some), device=some.device)
    return some.replaced(everywhere, pixels[attacked], wanted[attacked])


def _planted(
    parts: tuple[Part, ...],
    made_by: Mapping[int, Trigger],
    triggers: tuple[Trigger, ...],
    images: ImageSet,
) -> Planted:
    """``images`` as ``made_by`` makes them, once for each of the parts that are in it."""
    pixels = [
        apply_trigger(trigger, images.images, images.labels, images.ids)
        for trigger in made_by.values()
    ]
    targets = [
        parts[number].attack.wanted_labels(
            triggers[number], images.labels, images.ids, images.num_classes
        )
        for number in made_by
    ]
    count = len(images)
    everywhere = torch.arange(count, device=images.device).repeat(len(made_by))
    repeated = images.subset(everywhere)
    rows = torch.arange(len(repeated), device=images.device)
    return Planted(
        images=repeated.replaced(rows, torch.cat(pixels), repeated.labels),
        targets=torch.cat(targets),
        parts=torch.tensor(list(made_by), device=images.device).repeat_interleave(count),
        names=tuple(part.label for part in parts),
    )
