"""How each kind of step is carried out: what it reads and what it writes into its artifact."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import attrs
import torch
from safetensors.torch import load_file

from backdoorkit.data.poison import SampleKind, apply_trigger
from backdoorkit.data.splits import make_splits
from backdoorkit.data.statistics import channel_statistics
from backdoorkit.errors import InputError
from backdoorkit.figures import png_bytes
from backdoorkit.hooks.options import unstructure
from backdoorkit.models.checkpoints import load_weights, read_weights
from backdoorkit.pipeline.envelope import (
    Truth,
    run_analysis,
    run_defense,
    run_detector,
    seeded,
)
from backdoorkit.pipeline.measuring import (
    make_metrics,
    make_predictions,
    oracle,
    poison_record,
)
from backdoorkit.pipeline.metering import Meter
from backdoorkit.pipeline.plan import StepKind
from backdoorkit.pipeline.recipe import NO_ATTACK
from backdoorkit.pipeline.tensors import save_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from backdoorkit.context import Context
    from backdoorkit.contracts import Attack, Trigger
    from backdoorkit.hooks.shared_options import TrainOptions
    from backdoorkit.models.normalized import NormalizedModel
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.recipe import DataChoice, MethodChoice, ModelChoice
    from backdoorkit.pipeline.store import Artifact, Draft
    from backdoorkit.pipeline.workshop import Workshop

__all__ = ["make"]


def make(workshop: Workshop, step: Step) -> Artifact:
    """Carry out one step and store what it made."""
    with workshop.store.create(step.kind.value, step.key) as draft:
        with Meter(workshop.device) as meter:
            facts = _MAKERS[step.kind](workshop, step, draft)
        facts["cost"] = {
            "seconds": meter.seconds,
            "peak_memory_bytes": meter.peak_memory_bytes,
            **facts.get("cost", {}),
        }
        facts["hardware"] = hardware(workshop.device)
        draft.facts.update(facts, label=step.label, seed=step.seed)
    return workshop.artifact(step)


def hardware(device: torch.device) -> dict[str, Any]:
    """Where a step ran, for its record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "device": device.type,
        "name": name or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


# -- data and poison -------------------------------------------------------------------------------


def _split(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    choice: DataChoice = step.choices["data"]
    train, test = workshop.whole(choice, "train"), workshop.whole(choice, "test")
    if train.shape != test.shape or train.class_names != test.class_names:
        raise InputError(
            f"{choice.name}: training and test split must agree in image size and classes, not "
            f"{train.shape} with {train.num_classes} classes against {test.shape} with "
            f"{test.num_classes}"
        )
    generator = workshop.context(step, choice.name).generator("splits")
    splits = make_splits(train.labels.cpu(), test.labels.cpu(), choice.options, generator)
    parts = {"train": splits.train, "reserve": splits.reserve, "test": splits.test}
    save_tensors(draft, "splits", parts)
    mean, std = channel_statistics(train.subset(splits.train.to(train.device)))
    return {
        "image_shape": list(train.shape),
        "class_names": list(train.class_names),
        "mean": mean,
        "std": std,
        "sizes": {name: len(positions) for name, positions in parts.items()},
    }


def _poison(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    choice: MethodChoice = step.choices["attack"]
    attack: Attack[Any] = workshop.registry.create(choice.method, choice.config)
    context = workshop.context(step, choice.name)
    data = workshop.part(step.inputs["data"], "train")
    with seeded(context):
        trigger = attack.prepare(data, context)
        poisoned = attack.poison(data, trigger, context)
    positions = (poisoned.kinds != SampleKind.CLEAN).nonzero().flatten()
    save_tensors(draft, "trigger", trigger.state())
    save_tensors(
        draft,
        "poison",
        {
            "positions": positions,
            "kinds": poisoned.kinds[positions],
            "labels": poisoned.data.labels[positions],
            "true_labels": poisoned.true_labels[positions],
            "ids": data.ids[positions],
            "images": poisoned.data.fetch(positions),
        },
    )
    counts = {kind.name.lower(): int((poisoned.kinds == kind).sum()) for kind in SampleKind}
    return {"attack": _chosen(choice), "kinds": counts, "cost": _cost(context)}


# -- victim ----------------------------------------------------------------------------------------


def _victim(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    choice: ModelChoice = step.choices["model"]
    model = workshop.build(step)
    trigger = _carry_trigger(workshop, step, draft)
    if choice.weights is None:
        facts = _train(workshop, step, model, trigger)
    else:
        load_weights(model, read_weights(choice.weights), path=choice.weights)
        facts = {"imported": choice.weights.name}
    save_tensors(draft, "model", model.state_dict())
    save_tensors(draft, "samples", _samples(workshop, step, trigger))
    data = workshop.artifact(step.inputs["data"]).facts
    return {
        **facts,
        "architecture": _chosen(choice),
        "attack": _chosen(step.choices["attack"]),
        "image_shape": data["image_shape"],
        "class_names": data["class_names"],
    }


def _carry_trigger(workshop: Workshop, step: Step, draft: Draft) -> Trigger | None:
    """Put the trigger, and who was poisoned, beside the model: a victim is one artifact.

    An imported model was poisoned elsewhere; its trigger is made from the configuration alone.
    """
    attack = workshop.attack(step)
    if attack is None:
        return None
    if "poison" not in step.inputs:
        context = workshop.context(step, step.choices["attack"].name)
        with seeded(context):
            trigger = attack.prepare(workshop.part(step.inputs["data"], "train"), context)
        save_tensors(draft, "trigger", trigger.state())
        return trigger
    poison = workshop.artifact(step.inputs["poison"])
    record = load_file(poison.file("poison.safetensors"))
    del record["images"]  # who was poisoned and how; the images stay with the poison step
    save_tensors(draft, "poison", record)
    state = load_file(poison.file("trigger.safetensors"))
    save_tensors(draft, "trigger", state)
    return attack.restore({name: value.to(workshop.device) for name, value in state.items()})


def _train(
    workshop: Workshop, step: Step, model: NormalizedModel, trigger: Trigger | None
) -> dict[str, Any]:
    context = workshop.context(step, "victim")
    attack = workshop.attack(step)
    hooks = None
    if attack is not None and trigger is not None:
        data = workshop.part(step.inputs["data"], "train")
        hooks = attack.control(trigger, data, context)
    slot = workshop.store.slot(step.kind.value, step.key)
    options: TrainOptions = step.choices["train"]
    with seeded(context):
        summary = context.fit(
            model, workshop.training_data(step), options, hooks=hooks, checkpoint=slot
        )
    return {
        "training": {
            "options": unstructure(options),
            "history": [attrs.asdict(epoch) for epoch in summary.history],
        },
        "cost": _cost(context),
    }


def _samples(
    workshop: Workshop, step: Step, trigger: Trigger | None, count: int = 8
) -> dict[str, Tensor]:
    """For pictures: the trigger on flat grey, and a few test images without and with it."""
    test = workshop.part(step.inputs["data"], "test")
    first = [(test.labels == label).nonzero()[:1, 0] for label in range(test.num_classes)]
    some = test.subset(torch.cat(first)[:count])
    samples = {"clean": some.images, "labels": some.labels}
    if trigger is not None:
        samples["triggered"] = apply_trigger(trigger, some.images, some.labels, some.ids)
        grey = torch.full_like(some.images[:1], 128)
        samples["trigger"] = apply_trigger(trigger, grey, some.labels[:1], some.ids[:1])
    return samples


# -- defenses, detectors, analyses -----------------------------------------------------------------


def _defend(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    choice: MethodChoice = step.choices["method"]
    victim = step.inputs["victim"]
    context = workshop.context(step, choice.name, oracle(workshop, victim))
    defense = workshop.registry.create(choice.method, choice.config)
    result = run_defense(defense, choice.method.info, workshop.resources(victim), context)
    save_tensors(draft, "model", result.model.state_dict())
    save_tensors(draft, "tensors", result.tensors)
    return _method_facts(workshop, choice, context, step, dict(result.details))


def _detect(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    choice: MethodChoice = step.choices["method"]
    victim = step.inputs["victim"]
    context = workshop.context(step, choice.name, oracle(workshop, victim))
    detector = workshop.registry.create(choice.method, choice.config)
    result = run_detector(detector, choice.method.info, workshop.resources(victim), context)
    save_tensors(draft, "tensors", result.tensors)
    draft.write_json(
        "verdict.json",
        {
            "score": float(result.score),
            "threshold": result.threshold,
            "detected": result.detected,
            "target": result.target,
        },
    )
    return _method_facts(workshop, choice, context, step, dict(result.details))


def _analyze(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    choice: MethodChoice = step.choices["method"]
    victim, twin = step.inputs["victim"], step.inputs.get("twin")
    context = workshop.context(step, choice.name)
    analysis = workshop.registry.create(choice.method, choice.config)

    def kinds() -> Tensor | None:
        record = poison_record(workshop, victim)
        return None if record is None else record.kinds

    truth = Truth(
        plant=workshop.plant(victim),
        kinds=kinds,
        clean_twin=None if twin is None else lambda: workshop.model(twin, twin),
        test=lambda: workshop.part(step.inputs["data"], "test"),
    )
    result = run_analysis(analysis, choice.method.info, workshop.resources(victim), truth, context)
    for name, figure in result.figures.items():
        draft.write_bytes(f"{name}.png", png_bytes(figure))
    save_tensors(draft, "tensors", result.tensors)
    captions = {name: result.captions.get(name, "") for name in result.figures}
    draft.write_json("values.json", {"values": dict(result.values), "captions": captions})
    return _method_facts(workshop, choice, context, step, dict(result.details))


def _method_facts(
    workshop: Workshop, choice: MethodChoice, context: Context, step: Step, details: dict[str, Any]
) -> dict[str, Any]:
    sizes = workshop.artifact(step.inputs["data"]).facts["sizes"]
    uses_reserve = "clean-samples" in choice.method.info.needs
    return {
        "method": _chosen(choice),
        "details": details,
        "oracle": context.oracle_used,
        "clean_samples": sizes["reserve"] if uses_reserve else 0,
        "cost": _cost(context),
    }


# -- shared ----------------------------------------------------------------------------------------


def _cost(context: Context) -> dict[str, int]:
    return {"samples_seen": context.samples_seen, "gradient_steps": context.gradient_steps}


def _chosen(choice: Any) -> dict[str, Any] | None:
    """A choice as the record tells it; None for the clean twin's missing attack."""
    if choice.name == NO_ATTACK:
        return None
    return {
        "name": choice.name,
        "distribution": choice.method.distribution,
        "version": choice.method.version,
        "config": unstructure(choice.config),
    }


_MAKERS: dict[StepKind, Callable[[Workshop, Step, Draft], dict[str, Any]]] = {
    StepKind.DATA: _split,
    StepKind.POISON: _poison,
    StepKind.VICTIM: _victim,
    StepKind.EVALUATE: make_predictions,
    StepKind.DEFEND: _defend,
    StepKind.DETECT: _detect,
    StepKind.ANALYZE: _analyze,
    StepKind.MEASURE: make_metrics,
}
