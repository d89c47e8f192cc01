"""Steps that poison: triggers are prepared, training sets poisoned, learned triggers frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import torch

from backdoorkit.data.choosing import check_options, rescaled
from backdoorkit.data.poison import PoisonedSet, SampleKind
from backdoorkit.hooks.info import Need
from backdoorkit.pipeline.attacks import attack_context, attack_parts, stored_triggers
from backdoorkit.pipeline.envelope import seeded
from backdoorkit.pipeline.tensors import save_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from backdoorkit.context import Context
    from backdoorkit.contracts import Trigger
    from backdoorkit.data.images import ImageSet
    from backdoorkit.pipeline.attacks import Part
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.store import Draft
    from backdoorkit.pipeline.workshop import Workshop

__all__ = ["POISON_FILE", "attack_cost", "freeze", "poison"]

#: In a step that poisons, and beside a victim: what was done to which sample, with the images.
POISON_FILE: Final = "poison.safetensors"


def poison(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    """Make the triggers and, unless the attacker controls the training, the poisoned set."""
    parts = attack_parts(workshop, step.choices["attack"])
    data = workshop.part(step.inputs["data"], "train")
    contexts = [attack_context(workshop, step, part) for part in parts]
    triggers = []
    for part, context in zip(parts, contexts, strict=True):
        with seeded(context):
            triggers.append(part.attack.prepare(data, context))
    save_tensors(draft, "trigger", stored_triggers(parts, triggers))
    facts: dict[str, Any] = {}
    if controls := parts[0].attack.config.controls_training:
        check_options(data.labels, parts[0].attack.config, data.num_classes)
    else:
        facts = _save(draft, _poisoned(parts, triggers, data, contexts))
    return {
        **facts,
        "controls_training": controls,
        "test_data": any(Need.TEST_DATA in part.choice.method.info.needs for part in parts),
        **attack_cost(contexts),
    }


def freeze(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    """A poisoned set that does not change, by the trigger that a controlled training ended with."""
    victim = step.inputs["victim"]
    attack = workshop.attack(victim)
    assert attack is not None
    (part,), (trigger,) = attack
    context = attack_context(workshop, step, part)
    with seeded(context):
        frozen = part.attack.freeze(workshop.part(step.inputs["data"], "train"), trigger, context)
    return {**_save(draft, frozen), **attack_cost([context])}


def attack_cost(contexts: Sequence[Context]) -> dict[str, Any]:
    """What the attack's own code has spent and noted, and the assets it took or made."""
    return {
        "cost": {
            "samples_seen": sum(context.samples_seen for context in contexts),
            "gradient_steps": sum(context.gradient_steps for context in contexts),
        },
        "assets": [attrs.asdict(asset) for context in contexts for asset in context.assets],
        "notes": {context.method: context.notes for context in contexts if context.notes},
    }


def _save(draft: Draft, poisoned: PoisonedSet) -> dict[str, Any]:
    positions = (poisoned.kinds != SampleKind.CLEAN).nonzero().flatten()
    save_tensors(
        draft,
        "poison",
        {
            "positions": positions,
            "kinds": poisoned.kinds[positions],
            "labels": poisoned.data.labels[positions],
            "true_labels": poisoned.true_labels[positions],
            "ids": poisoned.data.ids[positions],
            "images": poisoned.data.fetch(positions),
        },
    )
    counts = {kind.name.lower(): int((poisoned.kinds == kind).sum()) for kind in SampleKind}
    return {"kinds": counts}


def _poisoned(
    parts: Sequence[Part],
    triggers: Sequence[Trigger],
    data: ImageSet,
    contexts: Sequence[Context],
) -> PoisonedSet:
    """The first part poisons all of ``data``, each later one what the others have left alone."""
    nothing = torch.zeros(len(data), dtype=torch.uint8, device=data.device)
    poisoned = PoisonedSet(data, data.labels, nothing)
    for part, trigger, context in zip(parts, triggers, contexts, strict=True):
        with seeded(context):
            if part is parts[0]:
                poisoned = part.attack.poison(data, trigger, context)
                continue
            free = (poisoned.kinds == SampleKind.CLEAN).nonzero().flatten()
            rest = data.subset(free)
            config = rescaled(part.attack.config, data.labels, rest.labels)
            attack = type(part.attack)(config)
            poisoned = _merged(poisoned, free, attack.poison(rest, trigger, context))
    return poisoned


def _merged(whole: PoisonedSet, free: Tensor, part: PoisonedSet) -> PoisonedSet:
    """``whole`` with what ``part`` did to the samples at ``free``, and those that it added."""
    altered = (part.kinds != SampleKind.CLEAN).nonzero().flatten()
    inside, added = altered[altered < len(free)], altered[altered >= len(free)]
    data, kinds = whole.data, whole.kinds.clone()
    data = data.replaced(free[inside], part.data.fetch(inside), part.data.labels[inside])
    kinds[free[inside]] = part.kinds[inside]
    true_labels = whole.true_labels
    if len(added):
        images, labels = part.data.fetch(added), part.data.labels[added]
        data = data.extended(images, labels, part.data.ids[added])
        kinds = torch.cat([kinds, part.kinds[added]])
        true_labels = torch.cat([true_labels, part.true_labels[added]])
    return PoisonedSet(data, true_labels, kinds)
