"""A recipe becomes a plan: steps in order, each with a content key, shared steps once.

A step's key is the hash of what it does (method, versions, resolved configuration), of the keys of
what it starts from, and of the seed. Two cells that need the same victim therefore share one step,
in one run or in many.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

import backdoorkit
from backdoorkit.hooks.info import ATTACK_NEEDS, Need
from backdoorkit.hooks.options import unstructure
from backdoorkit.pipeline.controls import planned_attacks
from backdoorkit.pipeline.keys import content_key
from backdoorkit.pipeline.labels import labels, train_labels
from backdoorkit.pipeline.recipe import (
    COMPOSED,
    NO_ATTACK,
    ComposedChoice,
    MethodChoice,
    NoOptions,
)
from backdoorkit.pipeline.results import NO_DEFENSE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from backdoorkit.hooks.shared_options import TrainOptions
    from backdoorkit.pipeline.recipe import DataChoice, ModelChoice, Recipe
    from backdoorkit.pipeline.results import Origin

__all__ = ["Entry", "Plan", "Step", "StepKind", "make_plan"]


class StepKind(enum.StrEnum):
    """What a step makes; also the name of its folder in the store."""

    DATA = "data"
    POISON = "poison"
    VICTIM = "victim"
    #: a poisoned training set after the fact, of an attack that controlled the training
    FREEZE = "frozen"
    EVALUATE = "predictions"
    DEFEND = "repaired"
    DETECT = "verdict"
    ANALYZE = "analysis"
    MEASURE = "metrics"


@attrs.frozen(kw_only=True)
class Step:
    """One thing to make, with the keys of what it starts from."""

    kind: StepKind
    key: str
    label: str
    seed: int
    #: what the step starts from, by role
    inputs: Mapping[str, Step] = attrs.field(factory=dict)
    #: the recipe's choices this step carries out, by role
    choices: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Entry:
    """Where the table's numbers come from: one row at one seed."""

    data: str
    model: str
    attack: str
    defense: str
    seed: int
    victim: Step
    #: the step that made the model this entry is about: the victim or a repaired one
    model_step: Step
    #: None for the entry of a detector or an analysis
    measure: Step | None = None
    detect: Step | None = None
    analyze: Step | None = None
    #: why there is nothing to carry out here; empty otherwise
    skipped: str = ""
    #: what the names stand for, in a plan that was read from a file; otherwise the steps tell
    origin: Origin | None = None


@attrs.frozen(kw_only=True)
class Plan:
    """Steps in an order in which each comes after what it starts from."""

    steps: tuple[Step, ...]
    entries: tuple[Entry, ...]

    def of_kind(self, *kinds: StepKind) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.kind in kinds)


def make_plan(
    recipe: Recipe,
    *,
    data_fingerprint: Callable[[DataChoice], str],
    file_fingerprint: Callable[[Any], str],
) -> Plan:
    """All steps of a recipe.

    Parameters
    ----------
    recipe:
        Resolved and validated.
    data_fingerprint:
        Identifies the images behind a data choice (:meth:`Dataset.fingerprint`).
    file_fingerprint:
        Identifies the content of a weights file.

    """
    builder = _Builder(recipe, data_fingerprint, file_fingerprint)
    entries = tuple(builder.entries())
    return Plan(steps=builder.ordered(), entries=entries)


class _Builder:
    def __init__(
        self,
        recipe: Recipe,
        data_fingerprint: Callable[[DataChoice], str],
        file_fingerprint: Callable[[Any], str],
    ) -> None:
        self._recipe = recipe
        self._data_fingerprint = data_fingerprint
        self._file_fingerprint = file_fingerprint
        self._steps: dict[str, Step] = {}

    def ordered(self) -> tuple[Step, ...]:
        """Data and poisoning first: they are quick, and what is impossible shows there."""
        early = (StepKind.DATA, StepKind.POISON)
        steps = self._steps.values()
        return (
            *(step for kind in early for step in steps if step.kind is kind),
            *(step for step in steps if step.kind not in early),
        )

    def entries(self) -> Iterator[Entry]:
        recipe = self._recipe
        data_labels = labels(recipe.data)
        model_labels = labels(recipe.models)
        for data, data_label in zip(recipe.data, data_labels, strict=True):
            for model, model_label in zip(recipe.models, model_labels, strict=True):
                for train, suffix in zip(recipe.train, train_labels(recipe.train), strict=True):
                    for attack, attack_label, is_control in planned_attacks(recipe, model):
                        for seed in recipe.seeds:
                            names = {
                                "data": data_label,
                                "model": model_label + suffix,
                                "attack": attack_label,
                                "seed": seed,
                            }
                            data_step = self._data(data, seed)
                            choices = {"model": model, "attack": attack, "train": train}
                            victim = self._victim_or_found(data_step, choices, seed, names)
                            yield from self._cells(victim, data_step, names, is_control)

    def _cells(
        self, victim: Step, data: Step, names: dict[str, Any], is_control: bool
    ) -> Iterator[Entry]:
        recipe = self._recipe
        if is_control:  # as it is, and as detectors see it
            recipe = attrs.evolve(recipe, defenses=(), analyses=())
        common = {**names, "victim": victim}
        baseline = self._evaluate(victim, victim, data, "victim", names)
        measure = self._measure(baseline, None, victim, data, names)
        yield Entry(**common, defense=NO_DEFENSE, model_step=victim, measure=measure)
        for choice, label in zip(recipe.defenses, labels(recipe.defenses), strict=True):
            repaired = self._method(StepKind.DEFEND, choice, label, victim, data, names)
            predictions = self._evaluate(repaired, victim, data, label, names)
            measure = self._measure(predictions, baseline, victim, data, names)
            yield Entry(**common, defense=label, model_step=repaired, measure=measure)
        for choice, label in zip(recipe.detectors, labels(recipe.detectors), strict=True):
            verdict = self._method(StepKind.DETECT, choice, label, victim, data, names)
            yield Entry(**common, defense=label, model_step=victim, detect=verdict)
        for choice, label in zip(recipe.analyses, labels(recipe.analyses), strict=True):
            entry = Entry(**common, defense=label, model_step=victim)
            needed = sorted(choice.method.info.needs & ATTACK_NEEDS)
            if needed and victim.choices["attack"].name == NO_ATTACK:
                yield attrs.evolve(entry, skipped=f"it needs an attack ({', '.join(needed)})")
            else:
                step = self._analyze(choice, label, victim, data, names)
                yield attrs.evolve(entry, analyze=step)

    # -- one method per kind of step ---------------------------------------------------------------

    def _data(self, data: DataChoice, seed: int) -> Step:
        return self._step(
            StepKind.DATA,
            f"split {data.name}, seed {seed}",
            seed,
            {},
            {"data": data},
            method=self._identity(data),
            options=unstructure(data.options),
            fingerprint=self._data_fingerprint(data),
        )

    def _victim_or_found(
        self, data: Step, choices: dict[str, Any], seed: int, names: Mapping[str, Any]
    ) -> Step:
        """The recipe's victim from elsewhere, where it names one."""
        found = self._recipe.victim
        if found is None:
            return self._victim(data, **choices, seed=seed, names=names)
        label = f"take over victim {found.path.name}"
        choices = {**choices, "folder": found}
        return self._step(
            StepKind.VICTIM, label, seed, {"data": data}, choices, folder=found.digest
        )

    def _victim(
        self,
        data: Step,
        model: ModelChoice,
        train: TrainOptions,
        attack: MethodChoice,
        seed: int,
        names: Mapping[str, Any],
    ) -> Step:
        choices = {"model": model, "attack": attack, "train": train}
        clean = attack.name == NO_ATTACK
        facts: dict[str, Any] = {
            "model": self._identity(model),
            "normalization": model.to_mapping()["normalization"],
        }
        if model.weights is not None:
            facts["weights"] = self._file_fingerprint(model.weights)
            facts["attack"] = None if clean else self._identity(attack)
            label = f"import {model.weights.name} as {names['model']}"
            return self._step(StepKind.VICTIM, label, seed, {"data": data}, choices, **facts)
        inputs = {"data": data}
        if not clean:
            verb = "prepare control on" if attack.controls_training else "poison"
            inputs["poison"] = self._step(
                StepKind.POISON,
                f"{verb} {names['data']} by {names['attack']}, seed {seed}",
                seed,
                {"data": data},
                {"attack": attack},
                method=self._identity(attack),
            )
        facts["train"] = unstructure(train)
        label = f"train {names['model']} on {names['data']}, attack {names['attack']}, seed {seed}"
        return self._step(StepKind.VICTIM, label, seed, inputs, choices, **facts)

    def _method(
        self,
        kind: StepKind,
        choice: MethodChoice,
        label: str,
        victim: Step,
        data: Step,
        names: Mapping[str, Any],
    ) -> Step:
        verb = "defend by" if kind is StepKind.DEFEND else "detect by"
        inputs = {"victim": victim, "data": data}
        if Need.TRAINING_DATA in choice.method.info.needs:
            inputs |= self._frozen(victim, data, names)
        return self._step(
            kind,
            f"{verb} {label}, attack {names['attack']}, seed {names['seed']}",
            victim.seed,
            inputs,
            {"method": choice},
            method=self._identity(choice),
        )

    def _analyze(
        self,
        choice: MethodChoice,
        label: str,
        victim: Step,
        data: Step,
        names: Mapping[str, Any],
    ) -> Step:
        inputs = {"victim": victim, "data": data}
        if choice.method.info.needs & {Need.TRAINING_DATA, Need.POISON_RECORD}:
            inputs |= self._frozen(victim, data, names)
        if Need.CLEAN_TWIN in choice.method.info.needs:
            inputs |= self._twin(victim, data, names)
        return self._step(
            StepKind.ANALYZE,
            f"analyze by {label}, attack {names['attack']}, seed {names['seed']}",
            victim.seed,
            inputs,
            {"method": choice},
            method=self._identity(choice),
        )

    def _frozen(self, victim: Step, data: Step, names: Mapping[str, Any]) -> dict[str, Step]:
        """What an attack that controlled the training shows to those who look at data."""
        attack: MethodChoice = victim.choices["attack"]
        if not attack.controls_training or victim.choices["model"].weights is not None:
            return {}
        step = self._step(
            StepKind.FREEZE,
            f"freeze {names['attack']} on {names['data']}, seed {names['seed']}",
            victim.seed,
            {"victim": victim, "data": data},
            {"attack": attack},
            method=self._identity(attack),
        )
        return {"frozen": step}

    def _twin(self, victim: Step, data: Step, names: Mapping[str, Any]) -> dict[str, Step]:
        """The same training without the attack: the step of the row ``none``, if there is one."""
        model: ModelChoice = victim.choices["model"]
        if model.weights is not None:
            return {}  # a model trained elsewhere has none; the preflight says so
        nobody = MethodChoice(name=NO_ATTACK, config=NoOptions())
        names = {**names, "attack": NO_ATTACK}
        train, seed = victim.choices["train"], victim.seed
        return {"twin": self._victim(data, model, train, nobody, seed, names)}

    def _evaluate(
        self, model: Step, victim: Step, data: Step, what: str, names: Mapping[str, Any]
    ) -> Step:
        return self._step(
            StepKind.EVALUATE,
            f"evaluate {what}, attack {names['attack']}, seed {names['seed']}",
            victim.seed,
            {"model": model, "victim": victim, "data": data},
            {},
        )

    def _measure(
        self,
        predictions: Step,
        baseline: Step | None,
        victim: Step,
        data: Step,
        names: Mapping[str, Any],
    ) -> Step:
        inputs = {"predictions": predictions, "victim": victim}
        if baseline is not None:
            inputs["baseline"] = baseline
        # Those that look at verdicts are computed at the end: they look at all models of the run.
        metrics = tuple(m for m in self._recipe.metrics if Need.VERDICTS not in m.method.info.needs)
        if any(Need.POISON_RECORD in metric.method.info.needs for metric in metrics):
            inputs |= self._frozen(victim, data, names)
        return self._step(
            StepKind.MEASURE,
            f"measure, attack {names['attack']}, seed {names['seed']}",
            victim.seed,
            inputs,
            {"metrics": metrics},
            metrics=[self._identity(metric) for metric in metrics],
        )

    def _identity(self, choice: MethodChoice) -> dict[str, Any]:
        """What of a choice enters a key: the method, whose code it is, and every option's value.

        A file that an option names counts with its content: edited, it is another file.
        """
        if isinstance(choice, ComposedChoice):
            return {"name": COMPOSED, "parts": [self._identity(part) for part in choice.parts]}
        values = {
            field.name: getattr(choice.config, field.name)
            for field in attrs.fields(type(choice.config))
        }
        identity = {
            "name": choice.name,
            "distribution": choice.method.distribution,
            "version": choice.method.version,
            "config": unstructure(choice.config),
        }
        files = {n: value for n, value in values.items() if isinstance(value, Path)}
        if contents := {n: self._file_fingerprint(f) for n, f in files.items() if f.is_file()}:
            identity["files"] = contents
        return identity

    def _step(
        self,
        kind: StepKind,
        label: str,
        seed: int,
        inputs: Mapping[str, Step],
        choices: Mapping[str, Any],
        **facts: Any,
    ) -> Step:
        key = content_key(
            kind=kind.value,
            core=backdoorkit.__version__,
            seed=seed,
            inputs={role: step.key for role, step in inputs.items()},
            **facts,
        )
        made = Step(kind=kind, key=key, label=label, seed=seed, inputs=inputs, choices=choices)
        return self._steps.setdefault(key, made)
