"""Tables of a recipe as plain values, before anything is made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import Issue, nearest
from backdoorkit.hooks.options import option_specs
from backdoorkit.pipeline.recipe import MethodChoice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backdoorkit.hooks.registry import Method
    from backdoorkit.pipeline.recipe import RunOptions

__all__ = [
    "advised",
    "by_path",
    "faults_of_run",
    "is_array_of_tables",
    "plain_text",
    "unknown_keys",
]

#: A name becomes a folder's.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d+)?")
_CHOICE_FIELDS: Final = frozenset(attrs.fields_dict(MethodChoice))


def plain_text(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without :class:`HereText`, which is of use to paths only."""
    return {key: str(item) if isinstance(item, str) else item for key, item in values.items()}


def is_array_of_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value)


def by_path(tables: Sequence[Mapping[str, Any]], key: str) -> dict[str, Mapping[str, Any]]:
    """An array of tables, each by its path: ``attacks[0]``."""
    return {f"{key}[{index}]": table for index, table in enumerate(tables)}


def unknown_keys(
    mapping: Mapping[str, Any], known: Sequence[str], path: str = ""
) -> Iterator[Issue]:
    """Keys that are not ``known``, each with the nearest that is."""
    for key in mapping:
        if key not in known:
            close = nearest(key, known)
            advice = f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"
            yield Issue(f"{path}{key}", f"unknown key; {advice}")


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


def faults_of_run(options: RunOptions) -> Iterator[Issue]:
    """What bounds alone do not tell of the options of a run."""
    if not _NAME.fullmatch(options.name):
        yield Issue(
            "name",
            "must be letters, digits, '.', '_' and '-', beginning with a letter or digit, "
            f"not {options.name!r}",
        )
    if not _DEVICE.fullmatch(options.device):
        yield Issue("device", f"must be auto, cpu, cuda or cuda:N, not {options.device!r}")
    if not options.seeds:
        yield Issue("seeds", "must name at least one seed")
    if len(set(options.seeds)) < len(options.seeds):
        yield Issue("seeds", f"must differ from each other, not {list(options.seeds)}")
