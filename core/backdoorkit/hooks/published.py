"""Tables of figures that papers have published, to stand beside ours.

A plugin ships a table as a small TOML file beside its code and names it in a hook; the file is read
when the table is shown.

.. code-block:: toml

    source = "Author and Author (Venue 2024), Table 1"
    setting = "CIFAR-10, PreAct-ResNet-18, 100 epochs, 10 % poisoned"
    columns = ["ACC", "ASR", "DER"]
    corrections = ["ours on badnets: ASR 1.37, printed as 1.31 (the column's mean only fits 1.37)"]

    [figures.badnets]       # an attack's name; "none" is the clean model
    none = [91.32, 95.03]   # a defense's name; "none" is the model as it was
    ours = [90.72, 1.37, 96.53]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import attrs

from backdoorkit.errors import ContractError

__all__ = ["PublishedFigures", "PublishedTable", "read_published"]

_NAME: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_RESOURCE: Final = re.compile(r"[A-Za-z_][\w.]*:[\w.-]+\.toml")
_KEYS: Final = ("source", "setting", "columns", "corrections", "figures")
#: No table of a paper is larger; what is larger is not one.
_LARGEST_FILE: Final = 1 << 20


def _check_name(_: object, __: object, value: Any) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(
            f"table name {value!r} must be lower-case words joined by '-', such as 'tsbd-table1'"
        )


def _check_resource(_: object, __: object, value: Any) -> None:
    if not isinstance(value, str) or not _RESOURCE.fullmatch(value):
        raise ValueError(f"resource {value!r} must read 'package:file.toml'")


@attrs.frozen(kw_only=True)
class PublishedTable:
    """What a plugin says about a table that a paper has printed."""

    #: what users call it, such as ``tsbd-table1``
    name: str = attrs.field(validator=_check_name)
    #: ``"package:file.toml"``, read when the table is shown
    resource: str = attrs.field(validator=_check_resource)


@attrs.frozen(kw_only=True)
class PublishedFigures:
    """The content of a table of published figures, in percent."""

    name: str
    #: authors, venue, year, number of the table
    source: str
    #: what was measured: data, architecture, training, poisoning, reserve
    setting: str
    #: named as our metrics' columns are, such as ``ACC``
    columns: tuple[str, ...]
    #: misprints, and what stands here instead
    corrections: tuple[str, ...] = ()
    #: attack -> defense -> column -> value; an attack ``none`` is the clean model, a defense
    #: ``none`` the model as it was
    figures: Mapping[str, Mapping[str, Mapping[str, float]]]

    def cell(self, attack: str, defense: str) -> Mapping[str, float] | None:
        """Values by column of one row of the paper; None where it has no such row."""
        return self.figures.get(attack, {}).get(defense)


def read_published(table: PublishedTable) -> PublishedFigures:
    """Read and check the figures of a table.

    Raises :class:`ContractError` that names the file and what is wrong in it.
    """
    import tomllib
    from importlib import resources

    package, _, file = table.resource.partition(":")
    try:
        path = resources.files(package).joinpath(file)
        content = path.read_bytes()
        if len(content) > _LARGEST_FILE:
            raise ValueError(f"has {len(content)} bytes, too many for a table")
        return _parsed(table.name, tomllib.loads(content.decode("utf-8")))
    except ImportError:
        problem = f"package {package!r} cannot be imported"
    except OSError:
        problem = "the file is missing; is it in the package's data?"
    except ValueError as error:  # TOML and UTF-8 errors are such too
        problem = str(error)
    raise ContractError(f"published table {table.name!r} ({table.resource}): {problem}")


def _parsed(name: str, values: Mapping[str, Any]) -> PublishedFigures:
    if unknown := sorted(set(values) - set(_KEYS)):
        raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
    texts = {key: values.get(key) for key in ("source", "setting")}
    for key, value in texts.items():
        if not (isinstance(value, str) and value):
            raise ValueError(f"{key} must be text, not {value!r}")
    columns = _texts(values.get("columns"), "columns")
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(f"columns must name each column once, not {columns!r}")
    figures = values.get("figures")
    if not (isinstance(figures, Mapping) and figures):
        raise ValueError("figures must hold a table for each attack, [figures.ATTACK]")
    return PublishedFigures(
        name=name,
        source=str(texts["source"]),
        setting=str(texts["setting"]),
        columns=tuple(columns),
        corrections=tuple(_texts(values.get("corrections", []), "corrections")),
        figures={attack: _rows(attack, rows, columns) for attack, rows in figures.items()},
    )


def _texts(value: Any, key: str) -> list[str]:
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise ValueError(f"{key} must be a list of texts, not {value!r}")
    return value


def _rows(attack: str, rows: Any, columns: list[str]) -> dict[str, dict[str, float]]:
    if not isinstance(rows, Mapping):
        raise ValueError(f"figures.{attack} must be a table, not {rows!r}")
    return {d: _cell(f"figures.{attack}.{d}", cell, columns) for d, cell in rows.items()}


def _cell(path: str, values: Any, columns: list[str]) -> dict[str, float]:
    """Values in the order of the columns; the last may be missing, as a DER without a defense."""
    if not (isinstance(values, list) and 0 < len(values) <= len(columns)):
        raise ValueError(f"{path} must be a list of up to {len(columns)} numbers, not {values!r}")
    for value in values:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and 0 <= value <= 100):
            raise ValueError(f"{path}: {value!r} is no percentage")
    return {column: float(value) for column, value in zip(columns, values, strict=False)}
