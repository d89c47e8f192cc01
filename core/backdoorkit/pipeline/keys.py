"""Content keys: the same inputs always hash to the same name, on every machine."""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import attrs

from backdoorkit.hooks.options import unstructure

__all__ = ["canonical_json", "content_key"]


def content_key(**parts: Any) -> str:
    """SHA-256 (64 hexadecimal digits) of ``parts``, whatever order they are given in.

    Raises :class:`TypeError` for a value that has no one plain form, such as a set or a tensor.
    """
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """``value`` as JSON in exactly one way: sorted keys, no blanks, floats as Python writes them.

    Lists and tuples are the same; ``1``, ``1.0`` and ``True`` are three different values.
    Configurations become their options, enum members their values and paths their text.
    """
    return json.dumps(_plain(value, "value"), sort_keys=True, separators=(",", ":"))


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, enum.Enum):
        return _plain(value.value, path)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path}: keys must be text, not {key!r}")
        return {key: _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if attrs.has(type(value)):
        return _plain(unstructure(value), path)
    raise TypeError(f"{path}: a {type(value).__name__} has no place in a content key: {value!r}")
