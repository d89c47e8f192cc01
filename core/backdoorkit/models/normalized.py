"""Normalisation as the first layer of a model, so that triggers and data stay in [0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from backdoorkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NormalizedModel"]


class NormalizedModel(nn.Module):
    """A network behind its normalisation: ``network((images - mean) / std)``.

    Parameters
    ----------
    network:
        Takes normalised images (N x C x H x W) and returns logits (N x K).
    mean, std:
        One number per channel, in the images' unit; ``std`` above 0. They are buffers, so they
        are stored with the weights and travel with the model.

    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        _check(mean, std)
        self.network = network
        self.register_buffer("mean", torch.tensor(tuple(mean), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(tuple(std), dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N x K) of images in [0, 1]."""
        mean, std = (values.view(-1, 1, 1) for values in (self.mean, self.std))
        logits: Tensor = self.network((images - mean) / std)
        return logits


def _check(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != len(std) or not len(mean):
        raise InputError(
            "normalisation needs a mean and a standard deviation for every channel, not "
            f"{len(mean)} and {len(std)} numbers"
        )
    # Written so that NaN is refused too.
    if not all(value > 0 for value in std):
        raise InputError(f"standard deviations to normalise by must be above 0, not {list(std)}")
