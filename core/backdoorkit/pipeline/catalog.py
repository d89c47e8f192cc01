"""The built-in executors, offered through the same hook as anybody's; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from backdoorkit.hooks.hookspecs import hookimpl
from backdoorkit.hooks.info import MethodInfo
from backdoorkit.hooks.options import option

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "IN_PROCESS",
    "PROCESSES",
    "InProcessOptions",
    "ProcessesOptions",
    "backdoorkit_executors",
]

#: the default executor
IN_PROCESS: Final = "in-process"
#: the default where several steps are to run at once
PROCESSES: Final = "processes"


@attrs.frozen(kw_only=True)
class InProcessOptions:
    """Nothing to choose."""


@attrs.frozen(kw_only=True)
class ProcessesOptions:
    """How much is borne of worker processes."""

    retries: int = option(
        2,
        ge=0,
        help="How often a step is tried again whose worker was killed, or ran out of "
        "memory; then it fails.",
    )


@hookimpl
def backdoorkit_executors() -> Iterable[MethodInfo]:
    """One step after the other in this process, or several side by side in others."""
    yield MethodInfo(
        name=IN_PROCESS,
        summary="One step after the other, in this process.",
        implementation="backdoorkit.pipeline._in_process:InProcess",
        config=InProcessOptions,
    )
    yield MethodInfo(
        name=PROCESSES,
        summary="Several steps side by side, in worker processes on this machine.",
        implementation="backdoorkit.pipeline._processes:Processes",
        config=ProcessesOptions,
    )
