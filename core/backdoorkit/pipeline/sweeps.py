"""Sweeps: one table of a recipe stands for one table per combination of its options' values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from backdoorkit.errors import Issue

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SWEEP", "Variant", "sweep_faults", "variants"]

#: Key of a table under which the lists of values are.
SWEEP: Final = "sweep"


@attrs.frozen(kw_only=True)
class Variant:
    """A table without its sweep, and which of the swept values are in it."""

    path: str
    table: dict[str, Any]
    #: swept options, each with the position of its value
    positions: Mapping[str, int] = attrs.field(factory=dict)

    @property
    def title(self) -> str:
        """How messages name it: ``attacks[0] with poison_rate=0.1``."""
        values = [f"{name}={self.table[name]}" for name in self.positions]
        return f"{self.path} with {', '.join(values)}" if values else self.path

    def located(self, issue: Issue) -> Issue:
        """``issue`` at the value in the recipe that caused it, where that was swept."""
        below = issue.path.removeprefix(f"{self.path}.")
        name = re.split(r"[.[]", below, maxsplit=1)[0]
        if below == issue.path or name not in self.positions:
            return issue
        path = f"{self.path}.{SWEEP}.{name}"
        if not issue.message.startswith("unknown key"):
            path += f"[{self.positions[name]}]{below.removeprefix(name)}"
        return Issue(path, issue.message)


def sweep_faults(table: Mapping[str, Any], path: str) -> Iterator[Issue]:
    """What is wrong with a table's sweep as such; its values are not looked at."""
    sweep = table.get(SWEEP, {})
    if not isinstance(sweep, Mapping) or (SWEEP in table and not sweep):
        yield Issue(
            f"{path}.{SWEEP}", f"must be a table of options with lists of values, not {sweep!r}"
        )
        return
    for name, values in sweep.items():
        if not isinstance(values, list | tuple) or not values:
            yield Issue(f"{path}.{SWEEP}.{name}", f"must be a list of values, not {values!r}")
        elif name in table:
            yield Issue(f"{path}.{SWEEP}.{name}", f"is set as {path}.{name}, too; leave one out")


def variants(table: Mapping[str, Any], path: str) -> Iterator[Variant]:
    """Every combination of the swept values, the first option varying slowest.

    A table without a sweep is its only variant; one whose sweep has faults must not be given.
    """
    plain = {key: value for key, value in table.items() if key != SWEEP}
    sweep: Mapping[str, Any] = table.get(SWEEP, {})
    for chosen in itertools.product(*(enumerate(values) for values in sweep.values())):
        named = dict(zip(sweep, chosen, strict=True))
        yield Variant(
            path=path,
            table={**plain, **{name: value for name, (_, value) in named.items()}},
            positions={name: position for name, (position, _) in named.items()},
        )
