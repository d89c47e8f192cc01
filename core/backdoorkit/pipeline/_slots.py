"""Checkpoints of something that is being made, so that a killed process can go on."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["Slot"]

log = logging.getLogger(__name__)

_FILE: Final = "checkpoint.safetensors"


class Slot:
    """Holds the latest checkpoint in one file, which is replaced whole or not at all.

    Saving more often than every ``interval`` seconds does nothing: what takes less time than that
    is done again as fast as it is read.
    """

    def __init__(self, path: Path, *, interval: float) -> None:
        self.path = path
        self._interval = interval
        self._saved = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors (on the CPU) and facts of the latest checkpoint; None where there is none."""
        from safetensors import SafetensorError, safe_open

        file = self.path / _FILE
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as stream:
                facts = json.loads((stream.metadata() or {})["facts"])
                return {name: stream.get_tensor(name) for name in stream.keys()}, facts  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            log.warning("checkpoint %s is damaged and is not used: %s", file, error)
            self.clear()
            return None

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep a copy of ``tensors``, and ``facts`` (JSON-ready), unless it is too early."""
        if time.monotonic() - self._saved < self._interval:
            return
        from safetensors.torch import save_file

        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f"{_FILE}.{os.getpid()}"
        try:
            # safetensors refuses tensors that share memory or are strided.
            plain = {
                name: tensor.detach().to("cpu", copy=True).contiguous()
                for name, tensor in tensors.items()
            }
            save_file(plain, draft, metadata={"facts": json.dumps(facts)})
            with draft.open("rb+") as stream:
                os.fsync(stream.fileno())
            draft.replace(self.path / _FILE)
        finally:
            draft.unlink(missing_ok=True)
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Forget the checkpoint."""
        shutil.rmtree(self.path, ignore_errors=True)
