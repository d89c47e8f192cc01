"""The generators, and the arithmetic that they share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional

from backdoorkit.api import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor

__all__ = ["ImageNetwork", "blended", "diversity_loss", "new_network", "sharpened"]

_EPSILON: Final = 1e-7


def sharpened(mask: Tensor) -> Tensor:
    """h(z) = 1/2 + tanh(20 z - 10) / 2: a mask in [0, 1] is brought close to 0 or 1."""
    return (20 * mask - 10).tanh() / 2 + 0.5


def blended(images: Tensor, patterns: Tensor, masks: Tensor) -> Tensor:
    """x + (p - x) m, in [0, 1]; masks are N x 1 x H x W."""
    return (images + (patterns - images) * masks).clamp(0, 1)


def diversity_loss(first: Tensor, second: Tensor, made: Tensor, others: Tensor) -> Tensor:
    """Mean of d(x, x') / d(made, made') over pairs: large where different images give the same.

    All N x ? x H x W; d is the root of the mean squared difference. It is finite, and its gradient
    is zero, where two outputs are equal.
    """
    distance = _distance(first, second)
    return (distance / (_distance(made, others) + _EPSILON)).mean()


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """N: unlike the root of a mean, a norm has a gradient (zero) at zero."""
    difference = (first - second).flatten(1)
    length: Tensor = torch.linalg.vector_norm(difference, dim=1)
    return length / math.sqrt(difference.shape[1])


class Block(nn.Module):
    """Convolution, batch norm with slow statistics, and ReLU unless it is the last."""

    def __init__(self, in_channels: int, out_channels: int, *, is_last: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels, momentum=0.05)
        self.is_last = is_last

    def forward(self, features: Tensor) -> Tensor:
        made: Tensor = self.norm(self.conv(features))
        return made if self.is_last else made.relu()


class ImageNetwork(nn.Module):
    """From an image to a pattern (C channels) or a mask (one), in [0, 1] and of its size.

    Down and up again through ``depth`` stages with ``width``, 2 width... channels, without
    shortcuts. On the way up, features get the very size they had, so that any size will do.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in range(depth)]
        before, after = [in_channels, *widths[:-1]], [out_channels, *widths[:-1]]
        self.down = nn.ModuleList(
            nn.Sequential(Block(came, wide), Block(wide, wide))
            for came, wide in zip(before, widths, strict=True)
        )
        self.middle = Block(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            nn.Sequential(Block(widths[i], widths[i]), Block(widths[i], after[i], is_last=i == 0))
            for i in reversed(range(depth))
        )

    def forward(self, images: Tensor) -> Tensor:
        """In [0, 1], N x out_channels x H x W."""
        features, sizes = images, []
        for stage in self.down:
            features = stage(features)
            sizes.append(features.shape[2:])
            features = functional.max_pool2d(features, 2)
        features = self.middle(features)
        for stage, size in zip(self.up, reversed(sizes), strict=True):
            grown = functional.interpolate(features, size=size, mode="bilinear")
            features = stage(grown)
        made: Tensor = features.tanh() / 2 + 0.5
        return made

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> ImageNetwork:
        """In eval mode and frozen, from its own state dictionary."""
        first = state["down.0.0.conv.weight"]
        depth = sum(name.startswith("down.") and name.endswith("0.conv.bias") for name in state)
        out_channels = len(state[f"up.{depth - 1}.1.conv.bias"])
        # Its initial weights, which nobody needs, come from torch's global generator.
        with torch.random.fork_rng(devices=[]):
            network = cls(first.shape[1], out_channels, len(first), depth)
        network.load_state_dict(dict(state))
        return network.to(first.device).eval().requires_grad_(False)


def new_network(
    shape: tuple[int, int, int], out_channels: int, width: int, depth: int, generator: Generator
) -> ImageNetwork:
    """An untrained generator for images of C x H x W, on the CPU.

    Raises
    ------
    InputError
        where the images are too small to be halved ``depth`` times.

    """
    channels, height, width_of_image = shape
    if min(height, width_of_image) < 2**depth:
        raise InputError(
            f"generators of {depth} stages halve images {depth} times, and these have "
            f"{height}x{width_of_image} pixels; set a smaller depth"
        )
    # torch's initialisers can draw from its global generator only.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        return ImageNetwork(channels, out_channels, width, depth)
