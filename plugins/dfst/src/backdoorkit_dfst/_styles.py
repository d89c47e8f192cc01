"""Styles: what the trigger mixes into an image, and the sunrise that they take after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoorkit.api import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backdoorkit_dfst import DFSTConfig

__all__ = [
    "ColourStyle",
    "NetworkStyle",
    "Style",
    "StyleNetwork",
    "draw_sunrise",
    "restore_style",
    "style_statistics",
]

#: under the root of a channel's variance: flat channels have no contrast to stretch
_EPSILON: Final = 1e-6
#: pixels are kept so far from 0 and 1 where their logits are taken
_MARGIN: Final = 0.02


class Style(Protocol):
    """G of the paper: images (float32 in [0, 1], N x C x H x W) in the style, each by itself."""

    def paint(self, images: Tensor) -> Tensor:
        """Styled copies of ``images``, in [0, 1]."""

    def state(self) -> dict[str, Tensor]:
        """The tensors that make the style; :func:`restore_style` takes them back."""


def style_statistics(config: DFSTConfig, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel (float32, 1 x C x 1 x 1).

    Grey images get the mean of those configured.

    Raises
    ------
    InputError
        where the style has another number of channels.

    """
    values = (config.style_mean, config.style_std)
    mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in values)
    if channels == 1:
        return mean.mean(dim=1, keepdim=True), std.mean(dim=1, keepdim=True)
    if mean.shape[1] != channels:
        raise InputError(
            f"the style has statistics for {mean.shape[1]} channels and the images have "
            f"{channels}; set style_mean and style_std"
        )
    return mean, std


def standardized(images: Tensor) -> Tensor:
    """Every channel of every image with mean 0 and variance 1, over its own pixels."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    variance = images.var(dim=(2, 3), keepdim=True, unbiased=False)
    return (images - mean) / (variance + _EPSILON).sqrt()


@attrs.frozen(eq=False)
class ColourStyle:
    """Channels get the style's mean and deviation, and light from above.

    The light is part of what is brought to these statistics, so it does not change them. Pixels
    that leave [0, 1] are clamped, which does, a little.
    """

    #: float32, 1 x C x 1 x 1, both
    mean: Tensor
    std: Tensor
    #: 0-d: the light's weight beside contrasts of variance 1
    gradient: Tensor

    def paint(self, images: Tensor) -> Tensor:
        device = images.device
        light = torch.linspace(1, -1, images.shape[2], device=device)[:, None]
        lit = standardized(standardized(images) + self.gradient.to(device) * light)
        return (lit * self.std.to(device) + self.mean.to(device)).clamp(0, 1)

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std, "gradient": self.gradient}


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(width, width, 3, padding=1)
        self.after = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = self.after(self.before(features).relu())
        return (features + changed).relu()


class StyleNetwork(nn.Module):
    """Encoder, two residual blocks, decoder; it adds to the logits of the pixels.

    The last layer starts at zero, so that untrained it leaves images as they are. No norm looks
    across images.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(2 * width), ResidualBlock(2 * width))
        self.up = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Images in (0, 1), N x C x H x W."""
        features = self.blocks(self.down(self.first(images).relu()).relu())
        features = functional.interpolate(features, size=images.shape[2:], mode="nearest")
        change = self.last(self.up(features).relu())
        painted: Tensor = (images.clamp(_MARGIN, 1 - _MARGIN).logit() + change).sigmoid()
        return painted


@attrs.frozen(eq=False)
class NetworkStyle:
    """The style of a trained network."""

    network: StyleNetwork

    def paint(self, images: Tensor) -> Tensor:
        network = self.network.to(images.device)
        styled: Tensor = network(images)
        return styled

    def state(self) -> dict[str, Tensor]:
        state = self.network.state_dict()
        return {f"network.{name}": value for name, value in state.items()}

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> NetworkStyle:
        """From the network's own state dictionary."""
        width, channels = state["first.weight"].shape[:2]
        # Its initial weights, which nobody needs, come from torch's global generator.
        with torch.random.fork_rng(devices=[]):
            network = StyleNetwork(channels, width)
        network.load_state_dict(dict(state))
        return cls(network.to(state["first.weight"].device).eval().requires_grad_(False))


def restore_style(state: Mapping[str, Tensor]) -> Style:
    """The style whose :meth:`Style.state` this is."""
    if "mean" in state:
        return ColourStyle(state["mean"], state["std"], state["gradient"])
    weights = {name.removeprefix("network."): value for name, value in state.items()}
    return NetworkStyle.of(weights)


def draw_sunrise(
    statistics: tuple[Tensor, Tensor], height: int, width: int, generator: torch.Generator
) -> Tensor:
    """A picture to take the style from: sky, a sun above the horizon, waves; 1 x C x H x W.

    Its channels have the mean and deviation of ``statistics``, but for pixels clamped to [0, 1].
    ``generator`` gives the grain.
    """
    rows, columns = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    horizon = 0.65
    sky = torch.where(rows < horizon, rows / horizon, 0.2) + 0 * columns
    sun = torch.sigmoid((0.16 - torch.hypot(rows - 0.55, columns - 0.5)) * 40)
    waves = torch.where(rows > horizon, torch.sin(rows * 60 + 3 * torch.sin(9 * columns)), 0.0)
    grain = torch.randn(height, width, generator=generator)
    picture = 0.6 * sky + 0.8 * sun + 0.2 * waves + 0.05 * grain
    mean, std = statistics
    return (standardized(picture.expand(1, mean.shape[1], -1, -1)) * std + mean).clamp(0, 1)
