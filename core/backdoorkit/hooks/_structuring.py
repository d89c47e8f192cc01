"""From plain values to a configuration, strictly: nothing coerced, every fault reported.

Imported when the first configuration is made, because cattrs takes as long to import as all else.
"""

from __future__ import annotations

import enum
import functools
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import attrs
from cattrs import (
    AttributeValidationNote,
    BaseValidationError,
    Converter,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from backdoorkit.errors import Issue, nearest
from backdoorkit.hooks.options import RULES, Rules, is_literal, strip_optional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["converter", "issues"]


@functools.cache
def converter() -> Converter:
    """A converter that knows the types options may have."""
    made = Converter(detailed_validation=True, forbid_extra_keys=True)
    for kind, accepts, word in (
        (bool, lambda v: isinstance(v, bool), "true or false"),
        (int, lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
        (float, lambda v: isinstance(v, int | float) and not isinstance(v, bool), "a number"),
        (str, lambda v: isinstance(v, str), "text"),
        (Path, lambda v: isinstance(v, str | Path), "a path"),
    ):
        made.register_structure_hook(kind, _strict(kind, accepts, word))
    made.register_structure_hook(enum.Enum, _structure_enum)
    made.register_structure_hook_func(is_literal, _structure_literal)

    def checked(annotation: Any, rules: Rules) -> Callable[[Any, Any], Any]:
        """Structure one field, then its bounds: so that all fields' faults come together."""

        def hook(value: Any, _: Any) -> Any:
            _check_shape(value, annotation)
            result = made.structure(value, annotation)
            if fault := rules.fault(result):
                raise ValueError(fault)
            return result

        return hook

    def factory(cls: type) -> Callable[[Any, Any], Any]:
        hints = typing.get_type_hints(cls)
        overrides = {
            field.name: override(struct_hook=checked(hints[field.name], field.metadata[RULES]))
            for field in attrs.fields(cls)
            if RULES in field.metadata
        }
        return make_dict_structure_fn(
            cls,
            made,
            _cattrs_detailed_validation=True,
            _cattrs_forbid_extra_keys=True,
            **overrides,  # type: ignore[arg-type]
        )

    made.register_structure_hook_factory(attrs.has, factory)
    return made


def _strict(kind: type, accepts: Callable[[Any], bool], word: str) -> Callable[[Any, Any], Any]:
    def hook(value: Any, wanted: Any) -> Any:
        if issubclass(wanted, enum.Enum):  # a StrEnum is a str too, but not any text is in it
            return _structure_enum(value, wanted)
        if not accepts(value):
            raise TypeError(f"must be {word}, not {value!r}")
        return kind(value)

    return hook


def _check_shape(value: Any, annotation: Any) -> None:
    """Refuse text or numbers where a table or a list is wanted; cattrs would iterate over them."""
    wanted, optional = strip_optional(annotation)
    if value is None and optional:
        return
    if attrs.has(wanted) and not isinstance(value, Mapping):
        raise TypeError(f"must be a table, not {value!r}")
    if get_origin(wanted) is tuple and not isinstance(value, list | tuple):
        raise TypeError(f"must be a list, not {value!r}")


def _structure_enum(value: Any, kind: type[enum.Enum]) -> Any:
    values = [member.value for member in kind]
    if value not in values and not isinstance(value, kind):
        raise ValueError(_not_one_of(value, values))
    return kind(value)


def _structure_literal(value: Any, annotation: Any) -> Any:
    values = get_args(annotation)
    if not any(value == item and type(value) is type(item) for item in values):
        raise ValueError(_not_one_of(value, values))
    return value


def _not_one_of(value: Any, values: Iterable[Any]) -> str:
    return str(Rules(help="", choices=tuple(values)).fault(value))


def issues(error: BaseException, path: str) -> Iterator[Issue]:
    """Flatten cattrs' exception group into (path, message) pairs."""
    if isinstance(error, ForbiddenExtraKeysError):
        known = [field.name for field in attrs.fields(error.cl)]
        for key in sorted(map(str, error.extra_fields)):
            close = nearest(key, known)
            advice = f"did you mean {close!r}?" if close else f"known: {', '.join(known) or 'none'}"
            yield Issue(_join(path, key), f"unknown key; {advice}")
    elif isinstance(error, BaseValidationError):
        for inner in error.exceptions:
            below = path
            for note in getattr(inner, "__notes__", ()):
                if isinstance(note, AttributeValidationNote):
                    below = _join(path, note.name)
                elif isinstance(note, IterableValidationNote):
                    below = f"{path}[{note.index}]"
            yield from issues(inner, below)
    elif isinstance(error, KeyError):
        yield Issue(path, "is required")
    else:
        yield Issue(path, str(error))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
