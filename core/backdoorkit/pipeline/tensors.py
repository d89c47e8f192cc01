"""Tensors as files of an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

    from backdoorkit.pipeline.store import Draft

__all__ = ["read_tensors", "save_tensors"]


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors of a file, without reading the others."""
    with safe_open(path, framework="pt") as stream:
        return {name: stream.get_tensor(name) for name in names}


def save_tensors(draft: Draft, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write ``name.safetensors`` into the draft, from any device and memory layout."""
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(plain, draft.path / f"{name}.safetensors")
