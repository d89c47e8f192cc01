"""Names of choices in tables: options are added only where a name alone would not tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backdoorkit.hooks.options import unstructure
from backdoorkit.pipeline.recipe import ComposedChoice

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

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
    tables = [other.to_mapping() for other in choices if other.name == choice.name]
    return ", ".join(_told_apart(choice.to_mapping(), tables)) or "repeated"


def _told_apart(own: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What tells one table from those ``alike``, in the order of their options."""
    names = dict.fromkeys(name for table in alike for name in table)
    for name in names:
        if len({repr(table.get(name)) for table in alike}) > 1:
            yield f"{name}={own.get(name, 'none')}"


def train_labels(options: Sequence[TrainOptions]) -> list[str]:
    """What tells several trainings apart, in brackets; nothing where there is one."""
    if len(options) == 1:
        return [""]
    tables = [unstructure(option) for option in options]
    return [f" ({', '.join(_told_apart(table, tables))})" for table in tables]
