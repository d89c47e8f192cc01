"""Leaving a model as it was found: train/eval modes and memory layout."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

__all__ = ["channels_last_weights", "modes_kept"]


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards every module is in the train/eval mode in which it was before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def channels_last_weights(model: nn.Module) -> Iterator[None]:
    """Inside, convolution weights lie as fast kernels want them; afterwards as they did before."""
    changed = [
        parameter
        for parameter in model.parameters()
        if parameter.ndim == 4 and parameter.is_contiguous()
    ]
    for parameter in changed:
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.data = parameter.data.contiguous()
