"""One attrs class per method is the single source of options, recipe keys, schema and docs.

``option()`` makes a field whose type, default, bounds and help are read by everything else:
:func:`structure` (strict, all faults at once), :func:`json_schema`, the command line's option
builder and the documentation's tables.
"""

from __future__ import annotations

import enum
import functools
import operator
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin

import attrs

from backdoorkit.errors import ConfigError, Issue, nearest

__all__ = [
    "OptionSpec",
    "json_schema",
    "option",
    "option_specs",
    "structure",
    "unstructure",
]

#: Key of a field's metadata under which its rules are.
RULES: Final = "backdoorkit.option"
_WORDS: Final = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
}
T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Rules:
    """What :func:`option` says of a field."""

    help: str
    symbol: str | None = None
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] | None = None

    def fault(self, value: Any) -> str | None:
        """What is wrong with ``value``, or None. Sequences are checked element by element."""
        if value is None:
            return None
        if isinstance(value, tuple):
            return next((fault for item in value if (fault := self.fault(item))), None)
        if self.choices is not None and value not in self.choices:
            close = nearest(value, map(str, self.choices)) if isinstance(value, str) else None
            advice = f"; did you mean {close!r}?" if close else ""
            return f"must be one of {', '.join(map(repr, self.choices))}, not {value!r}{advice}"
        for bound, holds, word in (
            (self.ge, operator.ge, "at least"),
            (self.gt, operator.gt, "greater than"),
            (self.le, operator.le, "at most"),
            (self.lt, operator.lt, "less than"),
        ):
            if bound is not None and not holds(value, bound):  # also refuses NaN
                return f"must be {word} {bound:g}, not {value!r}"
        return None


def option(
    default: Any = attrs.NOTHING,
    *,
    help: str,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[Any, ...] | None = None,
    symbol: str | None = None,
) -> Any:
    """A field of a method's configuration.

    Parameters
    ----------
    default:
        Omit it to make the option required.
    help:
        One sentence with the unit; the default and the bounds are added for you.
    ge, gt, le, lt:
        Bounds; for a tuple they hold for every element.
    choices:
        The only values allowed. A ``Literal`` or ``enum`` type needs none.
    symbol:
        What the paper calls it.

    """
    rules = Rules(help=help, symbol=symbol, ge=ge, gt=gt, le=le, lt=lt, choices=choices)

    def validate(_: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        if fault := rules.fault(value):
            raise ValueError(f"{attribute.name} {fault}")

    return attrs.field(default=default, validator=validate, metadata={RULES: rules})


@attrs.frozen(kw_only=True)
class OptionSpec:
    """One option as the command line, the schema and the documentation see it."""

    name: str
    type: Any
    help: str
    default: Any = attrs.NOTHING
    symbol: str | None = None
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] | None = None

    @property
    def required(self) -> bool:
        return self.default is attrs.NOTHING

    @property
    def flag(self) -> str:
        """The command line's spelling: ``--poison-rate``."""
        return "--" + self.name.replace("_", "-")

    @property
    def base_type(self) -> Any:
        """The type without ``| None``."""
        return strip_optional(self.type)[0]

    @property
    def is_optional(self) -> bool:
        return strip_optional(self.type)[1]

    @property
    def is_sequence(self) -> bool:
        return get_origin(self.base_type) is tuple

    @property
    def type_name(self) -> str:
        """The type in words: ``number in [0, 1]``, ``one of sgd, adam``, ``list of text``."""
        inner = get_args(self.base_type)[0] if self.is_sequence else self.base_type
        if self.allowed is not None:
            words = "one of " + ", ".join(map(str, self.allowed))
        elif attrs.has(inner):
            words = "table"
        else:
            words = _WORDS.get(inner, "text")
        words += f" in {self.bounds}" if self.bounds else ""
        return f"list of {words}" if self.is_sequence else words

    @property
    def plain_default(self) -> Any:
        """The default as plain (TOML and JSON ready) value; None where there is none."""
        return None if self.required else _plain(self.default)

    @property
    def default_text(self) -> str:
        """The default as written in a recipe; ``required`` or ``none`` where there is no value."""
        if self.required:
            return "required"
        plain = self.plain_default
        if plain is None:
            return "none"
        return str(plain).lower() if isinstance(plain, bool) else str(plain)

    @property
    def bounds(self) -> str:
        """Interval notation such as ``[0, 1)``, or an empty string."""
        if all(bound is None for bound in (self.ge, self.gt, self.le, self.lt)):
            return ""
        left, right = "(-inf", "inf)"
        if self.ge is not None:
            left = f"[{self.ge:g}"
        elif self.gt is not None:
            left = f"({self.gt:g}"
        if self.le is not None:
            right = f"{self.le:g}]"
        elif self.lt is not None:
            right = f"{self.lt:g})"
        return f"{left}, {right}"

    @property
    def allowed(self) -> tuple[Any, ...] | None:
        """The finite set of allowed values, from ``choices``, a ``Literal`` or an ``Enum``."""
        inner = self.base_type
        if self.is_sequence:
            inner = get_args(inner)[0]
        if self.choices is not None:
            return self.choices
        if is_literal(inner):
            return get_args(inner)
        if isinstance(inner, type) and issubclass(inner, enum.Enum):
            return tuple(member.value for member in inner)
        return None


def option_specs(config: type) -> tuple[OptionSpec, ...]:
    """The options of a configuration class, in the order of their definition."""
    return _option_specs(config)


@functools.cache
def _option_specs(config: Any) -> tuple[OptionSpec, ...]:
    hints = typing.get_type_hints(config)
    specs = []
    for field in attrs.fields(config):
        rules: Rules = field.metadata.get(RULES) or Rules(help="")
        default = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory()
        specs.append(
            OptionSpec(
                name=field.name, type=hints[field.name], default=default, **attrs.asdict(rules)
            )
        )
    return tuple(specs)


def structure(config: type[T], values: Mapping[str, Any], path: str = "") -> T:
    """Make a ``config`` from plain values, strictly.

    Unknown keys are refused, nothing is coerced ("no" is not True, 3.7 is not 3; an integer is
    accepted where a float is wanted), and every fault is reported, not only the first.

    Raises
    ------
    ConfigError
        with one issue per fault, each with its path below ``path``.

    """
    from cattrs import BaseValidationError

    from backdoorkit.hooks._structuring import converter, issues

    if not isinstance(values, Mapping):
        raise ConfigError([Issue(path, f"must be a table, not {values!r}")])
    try:
        return converter().structure(dict(values), config)
    except BaseValidationError as error:
        raise ConfigError(list(issues(error, path))) from None


def unstructure(config: Any) -> dict[str, Any]:
    """Plain values (TOML and JSON ready) of a configuration; options that are None are left out."""
    plain = {}
    for field in attrs.fields(type(config)):
        value = getattr(config, field.name)
        if value is not None:
            plain[field.name] = _plain(value)
    return plain


def json_schema(config: type) -> dict[str, Any]:
    """JSON Schema (2020-12) of a configuration class."""
    specs = option_specs(config)
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": config.__name__,
        "type": "object",
        "additionalProperties": False,
        "properties": {spec.name: _property(spec) for spec in specs},
    }
    if required := [spec.name for spec in specs if spec.required]:
        schema["required"] = required
    return schema


# -- schema ----------------------------------------------------------------------------------------


def _property(spec: OptionSpec) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if spec.allowed is not None:
        body["enum"] = list(spec.allowed)
    else:
        inner = get_args(spec.base_type)[0] if spec.is_sequence else spec.base_type
        body.update(_type_schema(inner))
    for key, bound in (
        ("minimum", spec.ge),
        ("exclusiveMinimum", spec.gt),
        ("maximum", spec.le),
        ("exclusiveMaximum", spec.lt),
    ):
        if bound is not None:
            body[key] = bound
    if spec.is_sequence:
        body = {"type": "array", "items": body}
    if spec.help:
        body["description"] = spec.help
    if not spec.required and spec.default is not None:
        body["default"] = _plain(spec.default)
    return body


def _type_schema(annotation: Any) -> dict[str, Any]:
    if attrs.has(annotation):
        nested = json_schema(annotation)
        del nested["$schema"]
        return nested
    names = {bool: "boolean", int: "integer", float: "number"}
    return {"type": names.get(annotation, "string")}


def _plain(value: Any) -> Any:
    if attrs.has(type(value)):
        return unstructure(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return value


def strip_optional(annotation: Any) -> tuple[Any, bool]:
    """``T`` and whether ``None`` is allowed, for ``T`` or ``T | None``."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [arg for arg in get_args(annotation) if arg is not type(None)]
        if len(inner) == 1:
            return inner[0], True
    return annotation, False


def is_literal(annotation: Any) -> bool:
    """Whether a type is ``Literal[...]``."""
    origin: Any = get_origin(annotation)
    return origin is Literal
