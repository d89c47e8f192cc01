"""Recipes as TOML the way a person would write them: one table per method, short lists in a line.

tomli-w alone would write methods as inline tables and every list over several lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w

__all__ = ["to_toml"]


def to_toml(values: Mapping[str, Any]) -> str:
    """Plain values as TOML: single values first, then ``[table]`` and ``[[array of tables]]``."""
    sections = [""]
    for key, value in values.items():
        if isinstance(value, Mapping):
            sections.append(_table(f"[{key}]", value))
        elif _is_array_of_tables(value):
            sections += (_table(f"[[{key}]]", item) for item in value)
        else:
            sections[0] += _line(key, value)
    return "\n".join(section for section in sections if section)


def _is_array_of_tables(value: Any) -> bool:
    return bool(value) and isinstance(value, list) and isinstance(value[0], Mapping)


def _table(header: str, values: Mapping[str, Any]) -> str:
    return f"{header}\n" + "".join(_line(key, value) for key, value in values.items())


def _line(key: str, value: Any) -> str:
    left = tomli_w.dumps({key: 0}).removesuffix("0\n")
    return f"{left}{_inline(value)}\n"


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        body = ", ".join(_line(key, item).strip() for key, item in value.items())
        return f"{{ {body} }}" if body else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").removesuffix("\n")
