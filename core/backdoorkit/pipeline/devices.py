"""The device that a recipe's words mean."""

from __future__ import annotations

import torch

from backdoorkit.errors import InputError

__all__ = ["chosen_device"]


def chosen_device(choice: str) -> torch.device:
    """The device that a recipe's words mean; raises InputError where there is none such."""
    if choice == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(choice)
    except RuntimeError:
        raise InputError(f"device must be auto, cpu or cuda (cuda:1...), not {choice!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda was asked for, and there is none; use auto or cpu")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda (cuda:1...), not {choice!r}")
    return device
