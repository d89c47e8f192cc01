"""Refusals that need no training: weights that do not fit, layers that a method does not find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backdoorkit.errors import ContractError, InputError, StructureError
from backdoorkit.hooks.info import Need
from backdoorkit.models.checkpoints import load_weights, read_weights
from backdoorkit.models.structure import find_structure
from backdoorkit.pipeline.plan import StepKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backdoorkit.pipeline.plan import Plan, Step
    from backdoorkit.pipeline.workshop import Workshop

__all__ = ["check_methods", "check_weights"]

#: What nobody has of a model that was trained elsewhere.
_OF_TRAINING: Final = {
    Need.TRAINING_DATA: "the training data",
    Need.POISON_RECORD: "the record of who was poisoned",
    Need.CLEAN_TWIN: "a clean twin",
}


def check_weights(plan: Plan, workshop: Workshop) -> None:
    """Read every file of weights once and see that it fits its architecture.

    Raises
    ------
    InputError
        naming the file and what is wrong with it.

    """
    seen: set[str] = set()
    for step in plan.of_kind(StepKind.VICTIM):
        model = step.choices["model"]
        if model.weights is None or repr(model) in seen:
            continue
        seen.add(repr(model))
        load_weights(workshop.build(step), read_weights(model.weights), path=model.weights)


def check_methods(plan: Plan, workshop: Workshop) -> None:
    """Ask every defense, detector and analysis whether it can work on the model it is to get.

    Runs on untrained models of the same architectures, before anything is trained. Steps whose
    result is in the store already are not asked.

    Raises
    ------
    StructureError
        naming each method, the layer and the reason, all at once.
    InputError
        where a method needs what the run has not got.

    """
    faults = list(dict.fromkeys(_faults(plan, workshop)))
    if faults:
        raise StructureError("\n".join(faults))


def _faults(plan: Plan, workshop: Workshop) -> Iterator[str]:
    asked: set[tuple[str, str]] = set()
    for step in plan.of_kind(StepKind.DEFEND, StepKind.DETECT, StepKind.ANALYZE):
        choice, victim = step.choices["method"], step.inputs["victim"]
        model = victim.choices["model"]
        question = (repr((choice.name, choice.config)), repr((model.name, model.config)))
        if question in asked or workshop.store.get(step.kind.value, step.key) is not None:
            continue
        asked.add(question)
        needs = choice.method.info.needs
        missing = " and ".join(words for need, words in _OF_TRAINING.items() if need in needs)
        if missing and model.weights is not None:
            yield (
                f"{choice.name} needs {missing}, and {model.weights.name} was trained elsewhere; "
                "leave the method out, or train the model in the recipe"
            )
            continue
        yield from _refusal(step, victim, workshop)


def _refusal(step: Step, victim: Step, workshop: Workshop) -> Iterator[str]:
    choice = step.choices["method"]
    method = workshop.registry.create(choice.method, choice.config)
    shape = tuple(workshop.artifact(victim.inputs["data"]).facts["image_shape"])
    try:
        method.check(find_structure(workshop.build(victim), shape))
    except StructureError as error:
        yield f"{choice.name} cannot work on {victim.choices['model'].name}: {error}"
    except (InputError, ContractError) as error:
        yield f"{choice.name}: {error}"
