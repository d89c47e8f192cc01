"""Training the feed-forward style generator: Gram matrices of a picture, content of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from backdoorkit.api import find_structure
from backdoorkit_dfst._styles import StyleNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from backdoorkit.api import Context, ImageSet
    from backdoorkit_dfst import DFSTConfig

__all__ = ["gram", "style_and_content", "train_generator"]

_BATCH: Final = 32


def gram(features: Tensor) -> Tensor:
    """Gram matrices F F^T / (C H W), N x C x C, of feature maps (N x C x H x W)."""
    flat = features.flatten(2).float()
    return flat @ flat.transpose(1, 2) / flat[0].numel()


def style_and_content(
    styled: Mapping[str, Tensor], original: Mapping[str, Tensor], grams: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The two losses, 0-d each, as shares of what they are compared with.

    Style: squared distance of the Gram matrices from those of the picture, mean over images and
    layers. Content: squared distance of the last layer's features from the image's own.

    Parameters
    ----------
    styled, original:
        Feature maps by layer of the generator's images and of the images it was given.
    grams:
        Of the picture, by layer, 1 x C x C.

    """
    distances = [
        (gram(features) - grams[name]).square().sum(dim=(1, 2)).mean() / grams[name].square().sum()
        for name, features in styled.items()
    ]
    last = list(styled)[-1]
    content = (styled[last].float() - original[last].float()).square().mean()
    return torch.stack(distances).mean(), content / original[last].float().square().mean()


def train_generator(
    surrogate: nn.Module, data: ImageSet, picture: Tensor, config: DFSTConfig, context: Context
) -> dict[str, Tensor]:
    """The trained generator's weights, and its last losses as ``style`` and ``content``.

    Parameters
    ----------
    surrogate:
        A classifier in eval mode whose weights need no gradients; its stages give the features.
    data:
        Images to be styled.
    picture:
        What the style is taken from, 1 x C x H x W, float32 in [0, 1].

    """
    structure = find_structure(surrogate, data.shape, data.num_classes)
    layers = structure.require_stages("dfst")
    network = StyleNetwork(data.shape[0], config.generator_width).to(context.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.generator_learning_rate)
    draws = context.generator("images to be styled")
    losses = torch.zeros(2, device=context.device)
    with structure.feature_maps(surrogate, layers) as maps:

        def features(images: Tensor) -> dict[str, Tensor]:
            with context.autocast():
                surrogate(images)
            return dict(maps)

        with torch.no_grad():
            grams = {name: gram(found) for name, found in features(picture).items()}
        for _ in context.track(range(config.generator_steps), "style generator"):
            rows = torch.randint(len(data), (_BATCH,), generator=draws)
            images = data.fetch(rows).to(context.device).float() / 255
            with torch.no_grad():
                original = features(images)
            style, content = style_and_content(features(network(images)), original, grams)
            optimizer.zero_grad()
            (config.style_weight * style + content).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses = torch.stack([style, content]).detach()
    context.count(_BATCH * config.generator_steps, config.generator_steps)
    return {**network.state_dict(), "style": losses[0], "content": losses[1]}
