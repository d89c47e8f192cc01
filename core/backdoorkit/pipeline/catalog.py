"""The built-in executor, offered through the same hook as anybody's; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from backdoorkit.hooks.hookspecs import hookimpl
from backdoorkit.hooks.info import MethodInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["IN_PROCESS", "InProcessOptions", "backdoorkit_executors"]

#: the default executor
IN_PROCESS: Final = "in-process"


@attrs.frozen(kw_only=True)
class InProcessOptions:
    """Nothing to choose."""


@hookimpl
def backdoorkit_executors() -> Iterable[MethodInfo]:
    """One step after the other, in this process."""
    yield MethodInfo(
        name=IN_PROCESS,
        summary="One step after the other, in this process.",
        implementation="backdoorkit.pipeline._in_process:InProcess",
        config=InProcessOptions,
    )
