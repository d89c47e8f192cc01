"""What is installed: the only module that reads distribution metadata."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["GROUP", "Entry", "installed_entries", "installed_version"]

#: Entry-point group in which plugins announce their light module.
GROUP: Final = "backdoorkit"


@attrs.frozen(order=True)
class Entry:
    """One entry point: ``name = "module"`` as written in a distribution's metadata."""

    name: str
    module: str
    distribution: str = ""
    version: str = ""

    def load(self) -> ModuleType:
        """Import the module; whatever that raises is the caller's to handle."""
        if ":" in self.module:
            raise ImportError(f"the entry must name a module, not {self.module!r}")
        return importlib.import_module(self.module)


def installed_entries() -> list[Entry]:
    """Entries of the group over all installed distributions, in no particular order."""
    import importlib_metadata

    return [
        Entry(
            point.name,
            point.value,
            point.dist.name if point.dist else "",
            point.dist.version if point.dist else "",
        )
        for point in importlib_metadata.entry_points(group=GROUP)
    ]


def installed_version(distribution: str) -> str:
    """Version of an installed distribution, or an empty string where it is not installed."""
    import importlib_metadata

    try:
        return importlib_metadata.version(distribution)
    except importlib_metadata.PackageNotFoundError:
        return ""
