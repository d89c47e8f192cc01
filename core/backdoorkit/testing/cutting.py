"""A training that is cut off, and what it goes on from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MemorySlot", "TrainingCutError"]


class TrainingCutError(Exception):
    """Raised where a training was to be cut."""


class MemorySlot:
    """A checkpoint slot in memory, which keeps copies as a file would.

    With ``cut_after``, that save is kept and the training cut; used again, the slot lets it end.
    """

    def __init__(self, *, cut_after: int | None = None) -> None:
        self.kept: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._cut_after = cut_after
        self._saves = 0

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self.kept

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.kept = ({name: value.clone() for name, value in tensors.items()}, dict(facts))
        self._saves += 1
        if self._saves == self._cut_after:
            raise TrainingCutError

    def clear(self) -> None:
        self.kept = None
