"""Making images collide: forward-backward splitting on a whole batch of poisons at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from backdoorkit.api import quantize

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from backdoorkit.api import Context
    from backdoorkit_fc import CollisionOptions

__all__ = ["collide", "objective"]

#: poisons at once at 32 x 32; of larger images fewer
_CHUNK: Final = 256


def objective(
    features: Tensor, goals: Tensor, images: Tensor, bases: Tensor, beta: float
) -> Tensor:
    """J = ||φ(x) - φ(z)||² + β ||x - b||² of each poison (float32, n)."""
    distance = (features - goals).square().sum(dim=1)
    return distance + beta * (images - bases).square().flatten(1).sum(dim=1)


def collide(
    extract: Callable[[Tensor], Tensor],
    starts: Tensor,
    bases: Tensor,
    goals: Tensor,
    config: CollisionOptions,
    context: Context,
) -> Tensor:
    """Poisons as they are stored (uint8, n x C x H x W): J is minimised for each of them.

    One step goes down the gradient of the feature distance, then back towards the base (the
    proximal step of β), and then into the bounds. A step that would raise J of a poison is not
    taken, and that poison's step size shrinks; the others know nothing of it.

    Parameters
    ----------
    extract:
        φ: features (n x d) of images; its weights need no gradients.
    starts, bases:
        float32 in [0, 1], n x C x H x W: where the poisons start, and b.
    goals:
        φ(z): n x d.

    """
    height, width = bases.shape[-2:]
    size = max(1, min(_CHUNK, _CHUNK * 32 * 32 // (height * width)))
    parts = [slice(first, first + size) for first in range(0, len(bases), size)]
    made = [
        quantize(_collide_chunk(extract, starts[p], bases[p], goals[p], config, context))
        for p in context.track(parts, "colliding")
    ]
    return torch.cat(made) if made else bases.to(torch.uint8)


def _collide_chunk(
    extract: Callable[[Tensor], Tensor],
    starts: Tensor,
    bases: Tensor,
    goals: Tensor,
    config: CollisionOptions,
    context: Context,
) -> Tensor:
    beta = config.beta
    if config.scale_beta:
        beta *= (goals.shape[1] / bases[0].numel()) ** 2
    low, high = torch.zeros_like(bases), torch.ones_like(bases)
    if config.radius is not None:
        low, high = (
            (bases - config.radius / 255).clamp(0),
            (bases + config.radius / 255).clamp(max=1),
        )

    def evaluated(images: Tensor) -> tuple[Tensor, Tensor]:
        """J of each image, and the gradient of its feature distance."""
        images = images.detach().requires_grad_()
        with torch.autocast(images.device.type, enabled=False):
            features = extract(images).float()
            distance = (features - goals).square().sum()
        (gradient,) = torch.autograd.grad(distance, [images])
        context.count(len(images), 0)
        return objective(features.detach(), goals, images.detach(), bases, beta), gradient

    images = starts.clamp(low, high)
    value, gradient = evaluated(images)
    rates = torch.full_like(value, config.step_size)[:, None, None, None]
    for _ in range(config.steps):
        forward = images - rates * gradient
        pull = 2 * rates * beta  # the 2 of the square's gradient, which the paper leaves out
        tried = (forward + pull * bases) / (1 + pull)
        tried = tried.clamp(low, high)
        tried_value, tried_gradient = evaluated(tried)
        # A step into NaN is no improvement either.
        better = (tried_value <= value)[:, None, None, None]
        images = torch.where(better, tried, images)
        gradient = torch.where(better, tried_gradient, gradient)
        value = torch.where(better.flatten(), tried_value, value)
        rates = torch.where(better, rates, rates * config.step_decay)
    return images
