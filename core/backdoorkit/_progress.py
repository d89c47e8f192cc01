"""Where progress is reported to; who shows it is the run's business."""

from __future__ import annotations

from typing import Final, Protocol

__all__ = ["SILENT", "Progress"]


class Progress(Protocol):
    """Shows how far long loops have come."""

    def start(self, label: str, total: int | None) -> int:
        """Begin a task of ``total`` units (None: unknown) and return its number."""

    def advance(self, task: int, amount: int = 1) -> None:
        """``amount`` more units of ``task`` are done."""

    def finish(self, task: int) -> None:
        """``task`` is over, complete or not."""


class _Silent:
    def start(self, label: str, total: int | None) -> int:
        del label, total
        return 0

    def advance(self, task: int, amount: int = 1) -> None:
        """Show nothing."""

    def finish(self, task: int) -> None:
        """Show nothing."""


#: shows nothing
SILENT: Final[Progress] = _Silent()
