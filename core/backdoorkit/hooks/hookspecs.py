"""The hooks a plugin may implement. Each is described in ``docs/authors/hooks.md``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backdoorkit.hooks.info import MethodInfo
    from backdoorkit.hooks.published import PublishedTable

__all__ = ["HOOK_API", "PROJECT", "hookimpl", "hookspec"]

PROJECT: Final = "backdoorkit"

#: Number of the hook contract. Adding a hook or an argument keeps it; renaming or removing one
#: raises it. A plugin may state ``BACKDOORKIT_API = 1`` and is set aside where that differs.
HOOK_API: Final = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def backdoorkit_attacks() -> Iterable[MethodInfo]:  # type: ignore[empty-body]
    """Attacks this plugin offers."""


@hookspec
def backdoorkit_defenses() -> Iterable[MethodInfo]:  # type: ignore[empty-body]
    """Defenses this plugin offers."""


@hookspec
def backdoorkit_detectors() -> Iterable[MethodInfo]:  # type: ignore[empty-body]
    """Detectors this plugin offers."""


@hookspec
def backdoorkit_analyses() -> Iterable[MethodInfo]:  # type: ignore[empty-body]
    """Analyses this plugin offers."""


@hookspec
def backdoorkit_metrics() -> Iterable[MethodInfo]:  # type: ignore[empty-body]
    """Metrics this plugin offers."""


@hookspec
def backdoorkit_datasets() -> Iterable[MethodInfo]:  # type: ignore[empty-body]
    """Sources of labelled images this plugin offers."""


@hookspec
def backdoorkit_models() -> Iterable[MethodInfo]:  # type: ignore[empty-body]
    """Architectures this plugin offers."""


@hookspec
def backdoorkit_executors() -> Iterable[MethodInfo]:  # type: ignore[empty-body]
    """Places where the steps of a plan can run."""


@hookspec
def backdoorkit_observers() -> Iterable[MethodInfo]:  # type: ignore[empty-body]
    """Observers of runs this plugin offers, each switched on by name."""


@hookspec
def backdoorkit_published_tables() -> Iterable[PublishedTable]:  # type: ignore[empty-body]
    """Tables of figures that papers have published, to stand beside ours."""


@hookspec
def backdoorkit_run_begin(run: Any) -> None:
    """Called once before the first step of a run. ``run`` is a ``backdoorkit.pipeline.Run``."""


@hookspec(firstresult=True)
def backdoorkit_step(run: Any, step: Any) -> Any:
    """Carry out one step and return its ``StepResult``.

    The core's own implementation comes last. Others should be wrappers (``wrapper=True``): they
    see every step, its result and its error.
    """


@hookspec
def backdoorkit_run_end(run: Any, error: BaseException | None) -> None:
    """Called once after the last step; ``error`` is what ended the run early, or None."""
