"""The plan of a run as a file, so that a run that never ended can still be told from the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import InputError
from backdoorkit.pipeline.origins import origin_of
from backdoorkit.pipeline.plan import Entry, Plan, Step, StepKind
from backdoorkit.pipeline.results import origin_from_json

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["plan_from_json", "plan_to_json", "step_to_json"]

_NAMES: Final = ("data", "model", "attack", "defense", "seed", "skipped")
_STEPS: Final = ("victim", "model_step", "measure", "detect", "analyze")


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Steps by what they are called and made from, and where the table's numbers come from."""
    return {
        "steps": [step_to_json(step) for step in plan.steps],
        "entries": [_entry(entry) for entry in plan.entries],
    }


def step_to_json(step: Step) -> dict[str, Any]:
    """What a step is called and made from."""
    return {
        "kind": step.kind.value,
        "key": step.key,
        "label": step.label,
        "seed": step.seed,
        "inputs": {role: source.key for role, source in step.inputs.items()},
    }


def _entry(entry: Entry) -> dict[str, Any]:
    steps = {name: getattr(entry, name) for name in _STEPS}
    return {
        **{name: getattr(entry, name) for name in _NAMES},
        **{name: None if step is None else step.key for name, step in steps.items()},
        "origin": attrs.asdict(origin_of(entry)),
    }


def plan_from_json(values: Mapping[str, Any]) -> Plan:
    """The plan again; its steps lack the choices that they carried out.

    Raises :class:`InputError` where the values are no plan.
    """
    steps: dict[str, Step] = {}
    try:
        left = {step["key"]: step for step in values["steps"]}
        while left:
            ready = [s for s in left.values() if all(key in steps for key in s["inputs"].values())]
            if not ready:
                raise ValueError("steps that start from each other")
            for step in ready:
                inputs = {role: steps[key] for role, key in step["inputs"].items()}
                facts = {name: step[name] for name in ("key", "label", "seed")}
                made = Step(kind=StepKind(step["kind"]), inputs=inputs, **facts)
                steps[made.key] = made
                del left[made.key]
        entries = tuple(_read_entry(entry, steps) for entry in values["entries"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"it is no plan of a run: {type(error).__name__}: {error}") from None
    return Plan(steps=tuple(steps[step["key"]] for step in values["steps"]), entries=entries)


def _read_entry(values: Mapping[str, Any], steps: Mapping[str, Step]) -> Entry:
    made: dict[str, Any] = {
        name: None if values[name] is None else steps[values[name]] for name in _STEPS
    }
    names = {name: values[name] for name in _NAMES}
    return Entry(**names, **made, origin=origin_from_json(values["origin"]))
