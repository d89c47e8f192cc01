"""Predictions of a model, and metrics from predictions that were stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch
from safetensors.torch import load_file

from backdoorkit.errors import InputError
from backdoorkit.evaluation import Evaluation, PoisonRecord, evaluate
from backdoorkit.hooks.info import Need
from backdoorkit.pipeline.attacks import part_choices
from backdoorkit.pipeline.poisoning import POISON_FILE
from backdoorkit.pipeline.tensors import read_tensors, save_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from backdoorkit.data.images import ImageSet
    from backdoorkit.pipeline.plan import Step
    from backdoorkit.pipeline.store import Draft
    from backdoorkit.pipeline.workshop import Workshop

__all__ = ["make_metrics", "make_predictions", "oracle", "poison_record"]


def make_predictions(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    """Logits of a model on clean and on triggered test images, sample by sample."""
    victim = step.inputs["victim"]
    evaluation = _predict(
        workshop,
        workshop.model(step.inputs["model"], victim),
        victim,
        workshop.part(step.inputs["data"], "test"),
        covers=True,
    )
    save_tensors(draft, "predictions", evaluation.to_tensors())
    return {"evaluation": evaluation.to_facts()}


def make_metrics(workshop: Workshop, step: Step, draft: Draft) -> dict[str, Any]:
    """Every metric of the recipe; no model is needed, so new metrics run on old results."""
    evaluation = _stored_evaluation(workshop, step)
    columns: dict[str, dict[str, Any]] = {}
    for choice in step.choices["metrics"]:
        metric = workshop.registry.create(choice.method, choice.config)
        seen = _declared(evaluation, choice.method.info.needs)
        for column, value in metric.compute(seen).items():
            if column in columns:
                raise InputError(
                    f"metrics {columns[column]['metric']} and {choice.name} both make the column "
                    f"{column}; leave one of them out"
                )
            columns[column] = {"metric": choice.name, **attrs.asdict(value)}
    draft.write_json("metrics.json", columns)
    return {}


def oracle(workshop: Workshop, victim: Step) -> Callable[[nn.Module], float]:
    """Test attack success of a model, over images whose true label is not the wanted one."""

    def attack_success(model: nn.Module) -> float:
        test = workshop.part(victim.inputs["data"], "test")
        triggered = _predict(workshop, model, victim, test).triggered
        if triggered is None:
            raise InputError("oracle selection needs an attack; the model has none in this run")
        return float(triggered.hits[triggered.eligible].double().mean())

    return attack_success


def _predict(
    workshop: Workshop, model: nn.Module, victim: Step, test: ImageSet, *, covers: bool = False
) -> Evaluation:
    planted = workshop.planted_tests(victim)
    if planted is None:
        return evaluate(model, test, device=workshop.device)
    triggered, cover = planted
    configs = [part.config for part in part_choices(victim.choices["attack"])]
    targets, maps = {c.target for c in configs}, {c.label_map.value for c in configs}
    return evaluate(
        model,
        test,
        triggered.images,
        targets=triggered.targets,
        parts=triggered.parts if len(triggered.names) > 1 else None,
        part_names=triggered.names if len(triggered.names) > 1 else (),
        covers=None if cover is None or not covers else cover.images,
        target=targets.pop() if len(targets) == 1 else None,
        label_map=maps.pop() if len(maps) == 1 else None,
        device=workshop.device,
    )


def _stored_evaluation(workshop: Workshop, step: Step) -> Evaluation:
    """Everything that any metric could declare."""
    evaluation = _read(workshop, step.inputs["predictions"])
    maker = workshop.artifact(step.inputs["predictions"].inputs["model"])
    kept = "tensors.safetensors" in maker.files
    baseline = step.inputs.get("baseline")
    return attrs.evolve(
        evaluation,
        baseline=None if baseline is None else _read(workshop, baseline),
        poison=poison_record(workshop, step.inputs["victim"], step.inputs.get("frozen")),
        outputs=load_file(maker.file("tensors.safetensors")) if kept else {},
        facts=maker.facts,
    )


def _read(workshop: Workshop, predictions: Step) -> Evaluation:
    artifact = workshop.artifact(predictions)
    tensors = load_file(artifact.file("predictions.safetensors"))
    return Evaluation.from_tensors(tensors, artifact.facts["evaluation"])


def poison_record(
    workshop: Workshop, victim: Step, frozen: Step | None = None
) -> PoisonRecord | None:
    """Kind of every training sample; None after training elsewhere or on clean data."""
    poison = workshop.poison(victim, frozen)
    if poison is None:
        return None
    altered = read_tensors(poison.file(POISON_FILE), ("positions", "kinds"))
    size: int = workshop.artifact(victim.inputs["data"]).facts["sizes"]["train"]
    added = int((altered["positions"] >= size).sum())
    kinds = torch.zeros(size + added, dtype=torch.uint8)
    kinds[altered["positions"]] = altered["kinds"]
    return PoisonRecord(kinds=kinds)


def _declared(evaluation: Evaluation, needs: frozenset[Need]) -> Evaluation:
    """The part of an evaluation that a metric declared."""
    return attrs.evolve(
        evaluation,
        baseline=evaluation.baseline if Need.BASELINE_PREDICTIONS in needs else None,
        poison=evaluation.poison if Need.POISON_RECORD in needs else None,
    )
