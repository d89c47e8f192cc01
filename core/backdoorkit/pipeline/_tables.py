"""Tables of a recipe as plain values, before anything is made of them"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import Issue, nearest
from backdoorkit.hooks.options import option_specs
from backdoorkit.pipeline.recipe import MethodChoice

if TYPE_CHECKING:
    from backdoorkit.hooks.registry import Method

__all__ = ["advised", "is_array_of_tables", "plain_text"]

_CHOICE_FIELDS: Final = frozenset(attrs.fields_dict(MethodChoice))


def plain_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without :class:`HereText`, which is of use to paths only."""
    return {key: str(item) if isinstance(item, str) else item for key, item in values.items()}


def is_array_of_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value)


def advised(issue: Issue, method: Method, extra: type | None, path: str) -> Issue:
    """Unknown keys of a table that two classes share get advice from both."""
    if extra is None or not issue.message.startswith("unknown key"):
        return issue
    own = [spec.name for spec in option_specs(method.info.config)]
    shared = [name for name in attrs.fields_dict(extra) if name not in _CHOICE_FIELDS]
    close = nearest(issue.path.removeprefix(f"{path}."), [*own, *shared])
    if close:
        return Issue(issue.path, f"unknown key; did you mean {close!r}?")
    known = (
        f"{', '.join(own) or 'nothing'} ({method.name}), {', '.join(shared)} (any {method.kind})"
    )
    return Issue(issue.path, f"unknown key; known: {known}")
