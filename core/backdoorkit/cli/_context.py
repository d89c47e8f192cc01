"""What commands share through click's context."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import click

    from backdoorkit.hooks.registry import Registry

__all__ = ["get_registry"]

_LOADED = "backdoorkit.registry"


def get_registry(context: click.Context) -> Registry:
    """The command's registry, loaded when first asked for.

    The group above puts a function without arguments under ``context.obj["registry"]``; without
    one, whatever is installed is loaded.
    """
    shared = context.ensure_object(dict)
    if _LOADED not in shared:
        load: Callable[[], Registry] = shared.get("registry") or _load_installed
        shared[_LOADED] = load()
    registry: Registry = shared[_LOADED]
    return registry


def _load_installed() -> Registry:
    from backdoorkit.hooks.registry import load_registry

    return load_registry()
