"""Names of choices in tables: options are added only where a name alone would not tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backdoorkit.hooks.options import option_specs, unstructure
from backdoorkit.pipeline.recipe import ComposedChoice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backdoorkit.hooks.shared_options import TrainOptions
    from backdoorkit.pipeline.recipe import MethodChoice

__all__ = ["labels", "train_labels"]


def labels(choices: Sequence[MethodChoice]) -> list[str]:
    """Names for the table: options are added only where the name alone would not tell."""
    names = [choice.title for choice in choices]
    return [
        name if names.count(name) == 1 else f"{name} ({_distinguishing(choice, choices)})"
        for name, choice in zip(names, choices, strict=True)
    ]


def _distinguishing(choice: MethodChoice, choices: Sequence[MethodChoice]) -> str:
    if isinstance(choice, ComposedChoice):
        alike = [c for c in choices if isinstance(c, ComposedChoice) and c.title == choice.title]
        columns = zip(*(other.parts for other in alike), strict=True)
        found = [_distinguishing(p, c) for p, c in zip(choice.parts, columns, strict=True)]
        return "; ".join(f for f in found if f != "repeated") or "repeated"
    same = [other.config for other in choices if other.name == choice.name]
    varying = [
        spec.name
        for spec in option_specs(type(choice.config))
        if len({repr(getattr(config, spec.name)) for config in same}) > 1
    ]
    own = unstructure(choice.config)
    return ", ".join(f"{name}={own.get(name)}" for name in varying) or "repeated"


def train_labels(options: Sequence[TrainOptions]) -> list[str]:
    """What tells several trainings apart, in brackets; nothing where there is one."""
    if len(options) == 1:
        return [""]
    varying = [
        spec.name
        for spec in option_specs(type(options[0]))
        if len({repr(getattr(option, spec.name)) for option in options}) > 1
    ]
    return [
        f" ({', '.join(f'{name}={getattr(option, name)}' for name in varying)})"
        for option in options
    ]
