"""Tensors as files of an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.pipeline.store import Draft

__all__ = ["save_tensors"]


def save_tensors(draft: Draft, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write ``name.safetensors`` into the draft, from any device and memory layout."""
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(plain, draft.path / f"{name}.safetensors")
