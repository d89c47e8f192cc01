"""Methods that can be named and configured and never run: for tests of what reads recipes."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import attrs

from backdoorkit.hooks.hookspecs import hookimpl
from backdoorkit.hooks.info import MethodInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["NoOptions", "light_method", "light_plugin"]


@attrs.frozen(kw_only=True)
class NoOptions:
    """Nothing to choose."""


def light_method(name: str, config: type = NoOptions, **more: Any) -> MethodInfo:
    """A method without an implementation; ``more`` are other facts of a :class:`MethodInfo`."""
    return MethodInfo(name=name, summary="Sum.", implementation="none:None_", config=config, **more)


def light_plugin(**methods: Iterable[MethodInfo]) -> types.SimpleNamespace:
    """A plugin that offers ``methods`` by the hooks of their kinds.

    ``light_plugin(attacks=[light_method("patch")])`` has the hook ``backdoorkit_attacks``.
    """
    return types.SimpleNamespace(
        **{f"backdoorkit_{kind}": _offering(tuple(offered)) for kind, offered in methods.items()}
    )


def _offering(offered: tuple[MethodInfo, ...]) -> Callable[[], tuple[MethodInfo, ...]]:
    @hookimpl
    def offer() -> tuple[MethodInfo, ...]:
        return offered

    return offer
