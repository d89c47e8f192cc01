"""Mean and standard deviation of a data set's pixels, for the normalisation inside models."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from backdoorkit.data.images import ImageSet

__all__ = ["channel_statistics", "images_digest"]


def images_digest(parts: Sequence[ImageSet], sampled: int = 500) -> str:
    """Changes with the images of ``parts``, their order or their labels; hexadecimal.

    All labels count, and the pixels of ``sampled`` images of each part, evenly spaced. Where the
    images come from does not count, nor what the classes are called.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)} {part.shape} {part.num_classes} ".encode())
        digest.update(part.labels.cpu().to(torch.int32).numpy().astype("<i4").tobytes())
        some = torch.linspace(0, max(0, len(part) - 1), min(sampled, len(part))).long()
        digest.update(part.fetch(some.to(part.device)).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def channel_statistics(data: ImageSet, chunk: int = 8192) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of the pixels in [0, 1], exactly from histograms."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts: Tensor = torch.zeros(data.shape[0], 256, dtype=torch.float64)
    for start in range(0, len(data), chunk):
        stop = min(start + chunk, len(data))
        images = data.fetch(torch.arange(start, stop, device=data.device)).cpu()
        for channel, pixels in enumerate(images.transpose(0, 1)):
            counts[channel] += torch.bincount(pixels.flatten().int(), minlength=256)
    shares = counts / counts.sum(1, keepdim=True)
    mean = shares @ levels
    variance = shares @ levels.square() - mean.square()
    # A constant channel must not be divided by zero.
    std = variance.clamp_min(0).sqrt().clamp_min(1e-3)
    return [float(value) for value in mean], [float(value) for value in std]
