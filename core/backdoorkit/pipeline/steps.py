"""How each kind of step is carried out: what it reads and what it writes into its artifact."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch

from backdoorkit.data.splits import make_splits
from backdoorkit.data.statistics import channel_statistics
from backdoorkit.errors import InputError
from backdoorkit.figures import png_bytes
from backdoorkit.pipeline.envelope import (
    Truth,
    run_analysis,
    run_defense,
    run_detector,
)
from backdoorkit.pipeline.measuring import (
    make_metrics,
    make_predictions,
    oracle,
    poison_record,
)
from backdoorkit.pipeline.metering import Meter
from backdoorkit.pipeline.plan import StepKind
from backdoorkit.pipeline.poisoning import freeze, poison
from backdoorkit.pipeline.screening import screen
from backdoorkit.pipeline.tensors import save_tensors
from backdoorkit.pipeline.victims import chosen, make_victim

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.figure import Figure
    from torch import Tensor

    from backdoorkit.context import Context
    from backdoorkit.contracts import DetectionResult
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.recipe import DataChoice, MethodChoice
    from backdoorkit.pipeline.store import Artifact, Draft
    from backdoorkit.pipeline.workshop import Workshop

__all__ = ["make"]


def make(workshop: Workshop, step: Step) -> Artifact:
    """Carry out one step and store what it made, unless another process has done so meanwhile."""
    with workshop.store.claim(step.kind.value, step.key):
        found = workshop.store.get(step.kind.value, step.key)
        return _made(workshop, step) if found is None else found


def _made(workshop: Workshop, step: Step) -> Artifact:
    with workshop.store.create(step.kind.value, step.key) as draft:
        with Meter(workshop.device) as meter:
            facts = _MAKERS[step.kind](workshop, step, draft)
        assets = facts.get("assets", [])
        made = sum(asset["seconds"] for asset in assets if not asset["reused"])
        facts["cost"] = {
            # Assets have costs of their own, whether they were made here or found.
            "seconds": max(0.0, meter.seconds - made),
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


# -- data ------------------------------------------------------------------------------------------


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


# -- defenses, detectors, analyses -----------------------------------------------------------------


def _defend(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    choice: MethodChoice = step.choices["method"]
    victim = step.inputs["victim"]
    context = workshop.context(step, choice.name, oracle(workshop, victim))
    defense = workshop.registry.create(choice.method, choice.config)
    resources = workshop.resources(victim, step.inputs.get("frozen"))
    result = run_defense(defense, choice.method.info, resources, context)
    save_tensors(draft, "model", result.model.state_dict())
    save_tensors(draft, "tensors", result.tensors)
    return _method_facts(workshop, choice, context, step, dict(result.details))


def _detect(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    choice: MethodChoice = step.choices["method"]
    victim = step.inputs["victim"]
    context = workshop.context(step, choice.name, oracle(workshop, victim))
    detector = workshop.registry.create(choice.method, choice.config)
    resources = workshop.resources(victim, step.inputs.get("frozen"))
    result = run_detector(detector, choice.method.info, resources, context)
    save_tensors(draft, "tensors", result.tensors)
    samples = {"scores": result.sample_scores, "flagged": result.flagged_samples}
    if kept := {name: value for name, value in samples.items() if value is not None}:
        save_tensors(draft, "samples", kept)
    if result.input_filter is not None:
        # Only now are there test images, and only for the filter, which is fitted.
        save_tensors(draft, "screening", screen(workshop, step, result.input_filter, context))
    draft.write_json(
        "verdict.json",
        {
            "score": None if result.score is None else float(result.score),
            "threshold": result.threshold,
            "detected": result.detected,
            "target": result.target,
            "filter_threshold": _filter_threshold(result),
            "captions": _draw(draft, result.figures, result.captions),
        },
    )
    return _method_facts(workshop, choice, context, step, dict(result.details))


def _filter_threshold(result: DetectionResult) -> float | None:
    return None if result.input_filter is None else float(result.input_filter.threshold)


def _analyze(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    choice: MethodChoice = step.choices["method"]
    victim, twin, frozen = (step.inputs.get(role) for role in ("victim", "twin", "frozen"))
    assert victim is not None
    context = workshop.context(step, choice.name)
    analysis = workshop.registry.create(choice.method, choice.config)

    def kinds() -> Tensor | None:
        record = poison_record(workshop, victim, frozen)
        return None if record is None else record.kinds

    truth = Truth(
        plant=workshop.plant(victim),
        kinds=kinds,
        clean_twin=None if twin is None else lambda: workshop.model(twin, twin),
        test=lambda: workshop.part(step.inputs["data"], "test"),
    )
    resources = workshop.resources(victim, frozen)
    result = run_analysis(analysis, choice.method.info, resources, truth, context)
    captions = _draw(draft, result.figures, result.captions)
    save_tensors(draft, "tensors", result.tensors)
    draft.write_json("values.json", {"values": dict(result.values), "captions": captions})
    return _method_facts(workshop, choice, context, step, dict(result.details))


def _draw(
    draft: Draft, figures: Mapping[str, Figure], captions: Mapping[str, str]
) -> dict[str, str]:
    """Write the figures, and return the caption of each."""
    for name, figure in figures.items():
        draft.write_bytes(f"{name}.png", png_bytes(figure))
    return {name: captions.get(name, "") for name in figures}


def _method_facts(
    workshop: Workshop, choice: MethodChoice, context: Context, step: Step, details: dict[str, Any]
) -> dict[str, Any]:
    sizes = workshop.artifact(step.inputs["data"]).facts["sizes"]
    uses_reserve = "clean-samples" in choice.method.info.needs
    return {
        "method": chosen(choice),
        "details": details,
        "oracle": context.oracle_used,
        "clean_samples": sizes["reserve"] if uses_reserve else 0,
        "cost": _cost(context),
    }


# -- shared ----------------------------------------------------------------------------------------


def _cost(context: Context) -> dict[str, int]:
    return {"samples_seen": context.samples_seen, "gradient_steps": context.gradient_steps}


_MAKERS: dict[StepKind, Callable[[Workshop, Step, Draft], dict[str, Any]]] = {
    StepKind.DATA: _split,
    StepKind.POISON: poison,
    StepKind.VICTIM: make_victim,
    StepKind.FREEZE: freeze,
    StepKind.EVALUATE: make_predictions,
    StepKind.DEFEND: _defend,
    StepKind.DETECT: _detect,
    StepKind.ANALYZE: _analyze,
    StepKind.MEASURE: make_metrics,
}
