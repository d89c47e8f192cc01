"""What an attack makes once and uses again: surrogates, encoders, optimised patterns."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["AssetRecord", "AssetShelf", "ForgetfulShelf"]


@attrs.frozen(kw_only=True)
class AssetRecord:
    """What an asset is, and what making it took."""

    name: str
    #: what it depends on, as its attack said
    facts: Mapping[str, Any]
    seconds: float = 0.0
    #: images that went through gradient computations
    samples_seen: int = 0
    #: optimizer steps
    gradient_steps: int = 0
    #: found on the shelf, not made by this step
    reused: bool = False


class AssetShelf(Protocol):
    """Where assets are kept between runs."""

    def load(
        self, name: str, facts: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], AssetRecord] | None:
        """Tensors (on the CPU) and record of what was saved under the same name and facts."""

    def claim(self, name: str, facts: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
        """For a block that makes the asset, so that no other process makes it at the same time."""

    def save(self, tensors: Mapping[str, Tensor], record: AssetRecord) -> None:
        """Keep the tensors (on the CPU, contiguous)."""


class ForgetfulShelf:
    """Keeps nothing: in tests, and where there is no store."""

    def load(
        self, name: str, facts: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], AssetRecord] | None:
        """Find nothing."""
        del name, facts
        return None

    def claim(self, name: str, facts: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
        """Claim nothing."""
        del name, facts
        return contextlib.nullcontext()

    def save(self, tensors: Mapping[str, Tensor], record: AssetRecord) -> None:
        """Keep nothing."""
