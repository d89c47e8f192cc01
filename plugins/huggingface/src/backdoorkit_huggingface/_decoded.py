"""Decoded images kept in the cache, so that the next run opens them at once."""

from __future__ import annotations

import json
import logging
import os
import secrets
from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from backdoorkit.api import ContractError, ImageSet

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_decoded", "save_decoded"]

_log = logging.getLogger(__name__)
#: in the file's remarks; raised when what is stored changes its meaning
_VERSION: Final = "1"


def load_decoded(path: Path) -> ImageSet | None:
    """The set kept at ``path``; None where there is none that can be used."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            remarks = stored.metadata() or {}
            if remarks.get("version") != _VERSION:
                return None
            images, labels = stored.get_tensor("images"), stored.get_tensor("labels")
        names = json.loads(remarks["classes"])
        return ImageSet.from_tensors(images, labels, class_names=names)
    except (OSError, SafetensorError, ContractError, KeyError, ValueError) as error:
        _log.warning("decoded images in %s cannot be used and are made again: %s", path, error)
        return None


def save_decoded(path: Path, data: ImageSet) -> None:
    """Keep a set in memory at ``path``, whole or not at all. A full disk is no error."""
    draft = path.with_name(f"{path.stem}-{secrets.token_hex(4)}.tmp")
    remarks = {"version": _VERSION, "classes": json.dumps(data.class_names)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": data.images, "labels": data.labels}, draft, metadata=remarks)
        with draft.open("rb+") as stream:
            os.fsync(stream.fileno())
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        _log.warning("decoded images were not kept in %s: %s", path, error)
        draft.unlink(missing_ok=True)
