"""Reversed triggers as pictures: the pattern through its mask, on grey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from safetensors.numpy import load_file

from backdoorkit.report.pictures import _framed, _png

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["trigger_pictures"]

#: Of models with more classes, the smallest triggers are shown.
_MOST: Final = 24
#: Pixels on the screen.
_SIDE: Final = 128


def trigger_pictures(tensors: Path, details: dict[str, Any]) -> list[dict[str, Any]]:
    """One picture per class, the smallest trigger first; none where the detector reversed none.

    A detector has them where it stored ``masks`` (in [0, 1], K x 1 x H x W) and ``patterns`` (in
    [0, 1], K x C x H x W).
    """
    stored = load_file(tensors)
    if "masks" not in stored or "patterns" not in stored:
        return []
    masks, patterns = (stored[name].astype(np.float32) for name in ("masks", "patterns"))
    sizes = masks.sum(axis=(1, 2, 3))
    flagged = set(details.get("flagged", []))
    shown = (0.5 * (1 - masks) + patterns * masks).clip(0, 1)
    pixels = np.rint(255 * shown).astype(np.uint8)
    return [
        {
            "picture": _png(_framed(pixels[label : label + 1], _SIDE)[0]),
            "label": int(label),
            "size": float(sizes[label]),
            "flagged": int(label) in flagged,
        }
        for label in sizes.argsort(kind="stable")[:_MOST]
    ]
