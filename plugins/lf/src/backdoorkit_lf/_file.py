"""Patterns from files of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from backdoorkit.api import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["read_pattern"]


def read_pattern(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """The pattern in a NumPy file, float32 in [-1, 1], C x H x W, for images of ``shape``.

    The file holds H x W x C (or H x W for grey images). Whole numbers are grey levels, up to 255;
    fractions are shares of full brightness, up to 1. Both are in use for the published patterns,
    and the type of the numbers tells which it is.

    Raises :class:`InputError` for anything else; nothing in the file is executed.
    """
    channels, height, width = shape
    expected = f"expected a NumPy array of {height} x {width} x {channels} numbers"
    try:
        # Mapped, so that a file that announces an enormous array allocates nothing.
        stored = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read pattern {path}: {expected} ({error})") from error
    shapes = [(height, width, channels)] + ([(height, width)] if channels == 1 else [])
    if stored.shape not in shapes:
        found = " x ".join(map(str, stored.shape))
        raise InputError(f"pattern {path}: {expected}, found {found}")
    if stored.dtype.kind not in "uif":
        raise InputError(f"pattern {path}: {expected}, found values of type {stored.dtype}")
    largest = 1 if stored.dtype.kind == "f" else 255
    values = torch.from_numpy(stored.astype(np.float64)).reshape(height, width, channels)
    if not bool((values.abs() <= largest).all()):  # also refuses NaN
        raise InputError(
            f"pattern {path}: expected {'fractions' if largest == 1 else 'grey levels'} within "
            f"±{largest}, found up to {values.abs().max():g}; fractions are shares of full "
            "brightness, whole numbers are grey levels"
        )
    return (values / largest).permute(2, 0, 1).float().contiguous()
