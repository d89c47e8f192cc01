"""Papers' figures that a recipe names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backdoorkit.errors import BackdoorkitError
from backdoorkit.hooks.published import read_published

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backdoorkit.hooks.published import PublishedFigures
    from backdoorkit.hooks.registry import Registry

__all__ = ["published_figures"]


def published_figures(
    names: Sequence[str], registry: Registry, fault: Callable[[str, str], None]
) -> tuple[PublishedFigures, ...]:
    """Papers' figures by name; read now, so that a fault shows before anything is trained."""
    found: dict[str, PublishedFigures] = {}
    for name in names:
        try:
            found[name] = read_published(registry.find_published(name).table)
        except BackdoorkitError as error:
            fault("published", str(error))
    return tuple(found.values())
