"""The built-in executors and observer, offered through the same hooks as anybody's; no torch."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - read at runtime, where the options are made
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
    "JsonLinesOptions",
    "ProcessesOptions",
    "TorchrunOptions",
    "backdoorkit_executors",
    "backdoorkit_observers",
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


@attrs.frozen(kw_only=True)
class TorchrunOptions:
    """Who shares a training."""

    processes: int | None = option(
        None,
        ge=2,
        help="Processes that train one model together, each with a part of every batch. Default: "
        "one for each GPU.",
    )
    retries: int = option(
        2, ge=0, help="How often a training is tried again one of whose processes died."
    )


@attrs.frozen(kw_only=True)
class JsonLinesOptions:
    """Where the lines go."""

    path: Path | None = option(
        None, help="File that lines are appended to. Default: events.jsonl in the run's folder."
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
    yield MethodInfo(
        name="torchrun",
        summary="Each victim trained by several processes together, one for each GPU.",
        reference="Li et al.: PyTorch Distributed: Experiences on Accelerating Data Parallel "
        "Training, VLDB 2020",
        implementation="backdoorkit.pipeline._torchrun:Torchrun",
        config=TorchrunOptions,
    )


@hookimpl
def backdoorkit_observers() -> Iterable[MethodInfo]:
    """A log for programs to read."""
    yield MethodInfo(
        name="jsonlines",
        summary="A log with one line of JSON for every event: steps with their times, results, "
        "errors.",
        implementation="backdoorkit.pipeline._json_lines:JsonLines",
        config=JsonLinesOptions,
    )
