"""Every error the framework raises on purpose.

A message says what was expected, what came and what to do. ``exit_code`` is what the command
line ends with; the values are documented in ``docs/users/command-line.md``.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

__all__ = [
    "BackdoorkitError",
    "BrokenPluginError",
    "ConfigError",
    "ContractError",
    "DamagedArtifactError",
    "InputError",
    "Issue",
    "LostWorkerError",
    "NeedNotDeclaredError",
    "OracleNotPermittedError",
    "RunFailedError",
    "StructureError",
    "UnknownNameError",
    "UnsafeFileError",
    "nearest",
    "nothing_at",
]


class BackdoorkitError(Exception):
    """Base of all errors raised on purpose; anything else that escapes is a bug."""

    exit_code: ClassVar[int] = 1


class InputError(BackdoorkitError):
    """Something the user gave (file, option, recipe, checkpoint) cannot be used."""

    exit_code: ClassVar[int] = 2


class UnknownNameError(InputError):
    """A method, data set, architecture or key of that name does not exist.

    ``name`` is what was asked for, ``known`` what there is; the message names the nearest.
    """

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.name = name
        self.known = tuple(sorted(known))
        close = nearest(name, self.known)
        advice = f"; did you mean {close!r}?" if close else ""
        if not advice:
            advice = f"; known: {', '.join(self.known)}" if self.known else "; none is installed"
        super().__init__(f"no {what} is called {name!r}{advice}{hint}")


@attrs.frozen
class Issue:
    """One thing wrong in a configuration: where, and what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(InputError):
    """A configuration is wrong; ``issues`` holds every fault found, not only the first."""

    def __init__(self, issues: Sequence[Issue]) -> None:
        self.issues = tuple(issues)
        super().__init__("\n".join(str(issue) for issue in self.issues))


class StructureError(InputError):
    """The model lacks a layer that the method needs; raised before anything runs."""


class UnsafeFileError(InputError):
    """A file could only be read by executing what is inside it, so it was not read."""


class BrokenPluginError(BackdoorkitError):
    """A plugin that was asked for by name cannot be used."""

    exit_code: ClassVar[int] = 3


class ContractError(BackdoorkitError):
    """A method broke its side of the contract (wrong type, shape, non-finite output...)."""


class NeedNotDeclaredError(ContractError):
    """A method reached for something that its ``needs`` do not declare."""


class OracleNotPermittedError(InputError):
    """A level was to be chosen on test attack success, and the run does not permit that."""


class DamagedArtifactError(BackdoorkitError):
    """A stored artifact does not match its checksum."""


class LostWorkerError(BackdoorkitError):
    """The process that made a step has ended in the middle of it, again and again."""


class RunFailedError(BackdoorkitError):
    """At least one step of a run failed; the others were carried out."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, or None where nothing is alike."""
    folded = {candidate.casefold().replace("_", "-"): candidate for candidate in known}
    matches = difflib.get_close_matches(name.casefold().replace("_", "-"), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None


def nothing_at(path: Path, what: str = "file") -> str:
    """``there is no file PATH``, and what lies beside it under a name like that."""
    try:
        close = nearest(path.name, [found.name for found in path.parent.iterdir()])
    except OSError:
        close = None
    advice = f"; did you mean {str(path.with_name(close))!r}?" if close else ""
    return f"there is no {what} {path}{advice}"
