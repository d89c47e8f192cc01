"""Scales: what a recipe changes about itself to be carried out smaller, such as ``[scale.cpu]``.

A scale is laid over the plain values of a recipe before anything is made of them, so that nothing
else knows of it: what a run does follows from the resolved recipe alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from backdoorkit.errors import ConfigError, InputError, Issue, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["FULL", "SCALE", "at_scale", "scales_of"]

#: Key of a recipe under which its scales are.
SCALE: Final = "scale"
#: The recipe as it is without any of them.
FULL: Final = "full"
#: Key of a scale's table of methods: names of those that stay.
_ONLY: Final = "only"
#: Lists of tables whose rows go by their names.
_METHODS: Final = ("attacks", "defenses", "detectors", "analyses", "metrics", "observers")
#: A scale has no say in these.
_FIXED: Final = ("name", "victim", SCALE)


def scales_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a recipe's scales, the recipe as it is first."""
    tables = values.get(SCALE, {})
    return (FULL, *(name for name in tables if name != FULL)) if _is_table(tables) else (FULL,)


def at_scale(values: Mapping[str, Any], scale: str | None) -> dict[str, Any]:
    """A recipe's plain values at a scale, without its scales; its name ends with the scale's.

    Raises
    ------
    InputError
        in one line where there is no such scale.
    ConfigError
        with every fault of the scale's tables.

    """
    plain = {key: value for key, value in values.items() if key != SCALE}
    tables = values.get(SCALE, {})
    if not (_is_table(tables) and all(map(_is_table, tables.values()))):
        raise ConfigError([Issue(SCALE, "must hold one table per scale, such as [scale.cpu]")])
    if FULL in tables:
        raise ConfigError([Issue(f"{SCALE}.{FULL}", "is the recipe itself; write it there")])
    if scale in (None, FULL):
        return plain
    if scale not in tables:
        raise InputError(
            f"the recipe has no scale {scale!r}; it has {', '.join(scales_of(values))}"
        )
    overlay = _Overlay(f"{SCALE}.{scale}")
    made = overlay.laid_over(plain, tables[scale])
    if overlay.issues:
        raise ConfigError(overlay.issues)
    return {**made, "name": f"{plain.get('name', 'run')}-{scale}"}


class _Overlay:
    """Lays tables over others; what is wrong with them collects in ``issues``."""

    def __init__(self, path: str) -> None:
        self.issues: list[Issue] = []
        self._path = path

    def laid_over(self, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        made = dict(values)
        for key, change in changes.items():
            path = f"{self._path}.{key}"
            if key in _FIXED:
                self.issues.append(Issue(path, "is the same at every scale; leave it out"))
            elif key in _METHODS and not _are_tables(change):
                made[key] = self._methods(made.get(key, []), change, path)
            else:
                made[key] = _merged(made.get(key), change)
        return {key: value for key, value in made.items() if not (key in _METHODS and value == [])}

    def _methods(self, rows: Any, change: Any, path: str) -> Any:
        """Rows by name: which of them stay, and what is changed in them."""
        if not _are_tables(rows):
            return rows  # refused with the rest of the recipe's faults
        if isinstance(change, list | tuple):
            return self._only(rows, change, path)
        if not _is_table(change):
            self.issues.append(
                Issue(path, f"must be names, or tables by name ([{path}.NAME]), not {change!r}")
            )
            return rows
        if _ONLY in change:
            rows = self._only(rows, change[_ONLY], f"{path}.{_ONLY}")
        for name, options in change.items():
            if name == _ONLY:
                continue
            if not _is_table(options):
                self.issues.append(Issue(f"{path}.{name}", f"must be a table, not {options!r}"))
            elif self._is_there(name, rows, f"{path}.{name}"):
                rows = [_merged(row, options) if row.get("name") == name else row for row in rows]
        return rows

    def _only(self, rows: Sequence[Mapping[str, Any]], names: Any, path: str) -> list[Any]:
        if not isinstance(names, list | tuple):
            self.issues.append(Issue(path, f"must be a list of names, not {names!r}"))
            return list(rows)
        for index, name in enumerate(names):
            self._is_there(name, rows, f"{path}[{index}]")
        return [row for row in rows if row.get("name") in names]

    def _is_there(self, name: Any, rows: Sequence[Mapping[str, Any]], path: str) -> bool:
        known = list(dict.fromkeys(_names(rows)))
        if name in known:
            return True
        close = nearest(name, known) if isinstance(name, str) else None
        advice = f"did you mean {close!r}?" if close else f"there are {', '.join(known) or 'none'}"
        self.issues.append(Issue(path, f"the recipe has no table called {name!r}; {advice}"))
        return False


def _merged(value: Any, change: Any) -> Any:
    """Tables key by key, all else replaced; so is a table of another method."""
    if not (_is_table(value) and _is_table(change)):
        return change
    if "name" in change and change["name"] != value.get("name"):
        return change
    return {**value, **{key: _merged(value.get(key), item) for key, item in change.items()}}


def _names(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return (row["name"] for row in rows if isinstance(row.get("name"), str))


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _are_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_table, value))
