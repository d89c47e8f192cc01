"""The first stage: the mask generator alone, on clean images, before there is a victim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from backdoorkit.api import batches
from backdoorkit_inputaware._networks import diversity_loss, new_network, sharpened

if TYPE_CHECKING:
    from torch import Tensor

    from backdoorkit.api import Context, ImageSet
    from backdoorkit_inputaware import InputAwareConfig
    from backdoorkit_inputaware._networks import ImageNetwork

__all__ = ["mask_loss", "rate_at", "train_masks"]

#: images on which the finished masks are measured
_MEASURED: Final = 1024


def rate_at(rate: float, milestones: tuple[float, ...], progress: float) -> float:
    """The learning rate after ``progress`` (in [0, 1)) of a training."""
    passed = sum(progress >= milestone for milestone in milestones)
    return float(rate * 0.1**passed)


def mask_loss(
    network: ImageNetwork, first: Tensor, second: Tensor, config: InputAwareConfig
) -> Tensor:
    """L_M: masks are to be small, and those of different images different.

    ``first`` and ``second`` are N images each, drawn independently.
    """
    masks, others = sharpened(network(torch.cat([first, second]))).chunk(2)
    excess = (masks - config.mask_density).relu().mean()
    diversity = diversity_loss(first, second, masks, others)
    return config.mask_norm * excess + config.mask_diversity * diversity


def train_masks(data: ImageSet, config: InputAwareConfig, context: Context) -> dict[str, Tensor]:
    """State of the trained mask generator M, and as ``density`` the mean of its masks."""
    network = new_network(
        data.shape, 1, config.width, config.depth, context.generator("mask generator")
    ).to(context.device)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=config.mask_learning_rate, betas=(0.5, 0.9)
    )
    orders = [context.generator(f"{which} images of a pair") for which in ("first", "second")]
    for epoch in context.track(range(config.mask_epochs), "mask generator"):
        progress = epoch / config.mask_epochs
        for group in optimizer.param_groups:
            group["lr"] = rate_at(config.mask_learning_rate, config.mask_milestones, progress)
        streams = (
            batches(
                data,
                config.mask_batch_size,
                generator=order,
                device=context.device,
                merge_singleton=True,
            )
            for order in orders
        )
        for first, second in zip(*streams, strict=True):
            optimizer.zero_grad(set_to_none=True)
            mask_loss(network, first.images, second.images, config).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            context.count(2 * len(first), 1)
    return {**network.state_dict(), "density": _density(network.eval(), data, context)}


@torch.no_grad()
def _density(network: ImageNetwork, data: ImageSet, context: Context) -> Tensor:
    order = torch.randperm(len(data), generator=context.generator("measured masks"))
    images = data.fetch(order[:_MEASURED]).to(context.device).float() / 255
    return torch.stack(
        [sharpened(network(part)).mean() for part in torch.split(images, 128)]
    ).mean()
