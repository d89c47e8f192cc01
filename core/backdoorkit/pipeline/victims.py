"""Steps that make victims: a model, its attack's trigger and poison, as one artifact."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import attrs
import torch
from safetensors.torch import load_file

from backdoorkit._team import current_team
from backdoorkit.data.poison import apply_trigger
from backdoorkit.data.statistics import images_digest
from backdoorkit.errors import ContractError, InputError
from backdoorkit.hooks.options import unstructure
from backdoorkit.models.checkpoints import load_weights, read_weights
from backdoorkit.pipeline.attacks import (
    attack_context,
    attack_parts,
    part_choices,
    restored_triggers,
    stored_triggers,
)
from backdoorkit.pipeline.envelope import seeded
from backdoorkit.pipeline.plan import StepKind
from backdoorkit.pipeline.poisoning import POISON_FILE, attack_cost
from backdoorkit.pipeline.recipe import NO_ATTACK
from backdoorkit.pipeline.store import read_artifact
from backdoorkit.pipeline.tensors import save_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from backdoorkit._training_hooks import CheckpointSlot
    from backdoorkit.contracts import Trigger
    from backdoorkit.hooks.shared_options import TrainOptions
    from backdoorkit.models.normalized import NormalizedModel
    from backdoorkit.pipeline.attacks import Part
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.recipe import ModelChoice
    from backdoorkit.pipeline.store import Draft
    from backdoorkit.pipeline.workshop import Workshop

__all__ = ["can_be_shared", "chosen", "make_victim", "train_along"]


def make_victim(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    """Train a model, or import its weights, and put all that belongs to it beside it."""
    if "folder" in step.choices:
        return _take_over(workshop, step, draft)
    choice: ModelChoice = step.choices["model"]
    model = workshop.build(step)
    attack = step.choices["attack"]
    parts = () if attack.name == NO_ATTACK else attack_parts(workshop, attack)
    facts: dict[str, Any]
    if choice.weights is not None:
        load_weights(model, read_weights(choice.weights), path=choice.weights)
        triggers = _prepared(workshop, step, parts)
        facts = {"imported": choice.weights.name}
    else:
        triggers = _taken(workshop, step, parts, draft)
        triggers, facts = _train(workshop, step, model, parts, triggers)
    if parts:
        save_tensors(draft, "trigger", stored_triggers(parts, triggers))
    save_tensors(draft, "model", model.state_dict())
    save_tensors(draft, "samples", _samples(workshop, step, parts, triggers))
    data = workshop.artifact(step.inputs["data"]).facts
    return {
        **facts,
        "architecture": chosen(choice),
        "attack": chosen(attack),
        "image_shape": data["image_shape"],
        "class_names": data["class_names"],
        "origin": None if choice.weights is not None else _origin(workshop, step),
    }


def _origin(workshop: Workshop, step: Step) -> dict[str, Any]:
    """What another machine needs in order to go on from this victim."""
    data, attack = step.inputs["data"], step.choices["attack"]
    return {
        "data": data.choices["data"].to_mapping(),
        "images": _images(workshop, step),
        "model": step.choices["model"].to_mapping(),
        "train": unstructure(step.choices["train"]),
        "attack": None if attack.name == NO_ATTACK else attack.to_mapping(),
        "seed": step.seed,
    }


def _images(workshop: Workshop, step: Step) -> str:
    parts = ("train", "reserve", "test")
    return images_digest([workshop.part(step.inputs["data"], part) for part in parts])


def _take_over(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    """Copy a victim from its folder, once its images are found to be those of this run."""
    found = step.choices["folder"]
    if _images(workshop, step) != found.origin["images"]:
        data = step.inputs["data"].choices["data"]
        raise InputError(
            f"victim {found.path.name} was trained on other images than those of {data.name} as "
            "it is here (or on the same in another order); name its data set, with its options"
        )
    artifact = read_artifact(found.path)
    if artifact.digest != found.digest:
        raise InputError(f"victim {found.path} has changed since the run began; start it again")
    for name in artifact.files:
        target = draft.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / name, target)
    model = workshop.build(step)
    path = draft.path / "model.safetensors"
    load_weights(model, load_file(path), path=path)
    facts = {key: value for key, value in artifact.facts.items() if key not in ("label", "seed")}
    return {**facts, "taken_over": {"folder": found.path.name, "key": artifact.key}}


def chosen(choice: Any) -> dict[str, Any] | None:
    """A choice as the record tells it; None for the clean twin's missing attack."""
    if choice.name == NO_ATTACK:
        return None
    parts = part_choices(choice)
    if parts != (choice,):
        return {"name": choice.name, "parts": [chosen(part) for part in parts]}
    return {
        "name": choice.name,
        "distribution": choice.method.distribution,
        "version": choice.method.version,
        "config": unstructure(choice.config),
    }


def _prepared(workshop: Workshop, step: Step, parts: tuple[Part, ...]) -> tuple[Trigger, ...]:
    """Triggers of a model that was poisoned elsewhere: from the configuration alone."""
    triggers = []
    for part in parts:
        context = attack_context(workshop, step, part)
        with seeded(context):
            data = workshop.part(step.inputs["data"], "train")
            triggers.append(part.attack.prepare(data, context))
    return tuple(triggers)


def _taken(
    workshop: Workshop, step: Step, parts: tuple[Part, ...], draft: Draft
) -> tuple[Trigger, ...]:
    """Triggers of the poison step; its record comes along, for a victim is one artifact."""
    if not parts:
        return ()
    poison = workshop.artifact(step.inputs["poison"])
    if POISON_FILE in poison.files:
        _link(poison.file(POISON_FILE), draft.path / POISON_FILE)
    state = load_file(poison.file("trigger.safetensors"))
    return restored_triggers(parts, state, workshop.device)


def _link(source: Path, target: Path) -> None:
    """One file under two names where the disk can do that, since artifacts are never changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _train(
    workshop: Workshop,
    step: Step,
    model: NormalizedModel,
    parts: tuple[Part, ...],
    triggers: tuple[Trigger, ...],
) -> tuple[tuple[Trigger, ...], dict[str, Any]]:
    """Triggers as they are after the training, and its facts."""
    options: TrainOptions = step.choices["train"]
    context = workshop.context(step, "victim")
    contexts, hooks = [context], None
    if step.choices["attack"].controls_training:
        (part,), (trigger,) = parts, triggers
        contexts.append(attack_context(workshop, step, part))
        with seeded(contexts[1]):
            data = workshop.part(step.inputs["data"], "train")
            hooks = part.attack.control(trigger, data, contexts[1])
        if hooks is None:
            raise ContractError(
                f"{part.choice.name} is configured to control the training, and its control() "
                "returns no hooks"
            )
    slot = workshop.store.slot(step.kind.value, step.key)
    with seeded(context):
        summary = context.fit(
            model, workshop.training_data(step), options, hooks=hooks, checkpoint=slot
        )
    team = current_team()
    facts = {
        "training": {
            "options": unstructure(options),
            "history": [attrs.asdict(epoch) for epoch in summary.history],
            **({} if team is None else {"processes": team.size}),
        },
        **attack_cost(contexts),
    }
    return triggers if hooks is None else (hooks.trigger,), facts


def can_be_shared(step: Step) -> bool:
    """Whether several processes may make the step together: a plain training of a victim."""
    if step.kind is not StepKind.VICTIM or "folder" in step.choices:
        return False
    attack = step.choices["attack"]
    controlled = attack.name != NO_ATTACK and attack.controls_training
    return step.choices["model"].weights is None and not controlled


def train_along(workshop: Workshop, step: Step) -> None:
    """Take a part in the training of a victim that another process makes."""
    context = workshop.context(step, "victim")
    model = workshop.build(step)
    data = workshop.training_data(step)
    slot = _ReadOnlySlot(workshop.store.slot(step.kind.value, step.key))
    with seeded(context):
        context.fit(model, data, step.choices["train"], checkpoint=slot)


class _ReadOnlySlot:
    """A checkpoint that somebody else keeps."""

    def __init__(self, slot: CheckpointSlot) -> None:
        self.load = slot.load

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Leave it to whoever keeps it."""

    def clear(self) -> None:
        """Leave it to whoever keeps it."""


def _samples(
    workshop: Workshop,
    step: Step,
    parts: tuple[Part, ...],
    triggers: tuple[Trigger, ...],
    count: int = 8,
) -> dict[str, Tensor]:
    """For pictures: the trigger on flat grey, and a few test images without and with it.

    Of a composed attack, ``trigger.0``, ``triggered.0`` and so on; with ``cover`` where there are
    covers of the attack's own.
    """
    test = workshop.part(step.inputs["data"], "test")
    first = [(test.labels == label).nonzero()[:1, 0] for label in range(test.num_classes)]
    some = test.subset(torch.cat(first)[:count])
    grey = torch.full_like(some.images[:1], 128)
    samples = {"clean": some.images, "labels": some.labels}
    for part, trigger in zip(parts, triggers, strict=True):
        suffix = "" if part.number is None else f".{part.number}"
        shown = {"triggered": trigger}
        cover = part.attack.cover(trigger)
        if cover is not None:
            shown["cover"] = cover
        for name, made_by in shown.items():
            samples[name + suffix] = apply_trigger(made_by, some.images, some.labels, some.ids)
        samples["trigger" + suffix] = apply_trigger(trigger, grey, some.labels[:1], some.ids[:1])
    return samples
