"""``--set PATH=VALUE``: changes to plain values before they become a recipe."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from backdoorkit.cli._options import parse_value
from backdoorkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["parse_assignment", "set_value"]

_PART: Final = re.compile(r"([A-Za-z0-9_-]+)(?:\[(\d+)\])?")


def parse_assignment(text: str) -> tuple[str, Any]:
    """``data.size=16`` as path and value; raises :class:`InputError` where it is none."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip() or not value.strip():
        raise InputError(f"--set wants PATH=VALUE, such as train.epochs=5, not {text!r}")
    return path.strip(), parse_value(value.strip())


def set_value(values: dict[str, Any], path: str, value: Any) -> None:
    """Put ``value`` at ``path``, such as ``train.epochs`` or ``attacks[0].target``, in place.

    A table on the way is made where it is missing; an element of an array must be there. Raises
    :class:`InputError` where the path leads nowhere.
    """
    *above, last = _steps(path)
    here: Any = values
    for step in above:
        if isinstance(here, dict) and isinstance(step, str):
            here.setdefault(step, {})
        _require(here, step, path)
        here = here[step]
    if not (isinstance(here, dict) and isinstance(last, str)):
        _require(here, last, path)
    here[last] = value


def _steps(path: str) -> Iterator[str | int]:
    for part in path.split("."):
        match = _PART.fullmatch(part)
        if match is None:
            raise InputError(
                f"--set cannot read the path {path!r}; write it like attacks[0].target"
            )
        yield match[1]
        if match[2] is not None:
            yield int(match[2])


def _require(here: Any, step: str | int, path: str) -> None:
    """Refuse a step that cannot be taken from ``here``."""
    if isinstance(here, dict) and isinstance(step, str):
        return
    if isinstance(here, list) and isinstance(step, int) and step < len(here):
        return
    if isinstance(here, list):
        raise InputError(
            f"--set {path}: there are {len(here)} such tables; write which one as [0] to "
            f"[{len(here) - 1}]"
            if here
            else f"--set {path}: the array is empty"
        )
    raise InputError(f"--set {path}: nothing is at {step!r}; only tables and arrays have parts")
