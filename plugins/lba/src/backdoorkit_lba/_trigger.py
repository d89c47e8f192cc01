"""The patch: where it sits, and how it is optimised in feature space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from backdoorkit.api import InputError, Trigger, require_image_shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from backdoorkit.api import Context
    from backdoorkit_lba import LBAConfig

__all__ = ["Patch", "draw_mask", "initial_weights", "optimize_pattern", "pattern_of"]


@attrs.frozen(eq=False, kw_only=True)
class Patch(Trigger):
    """T(x) = (1 - m) x + m p."""

    #: p, float32 on the grid of 8-bit values, 1 x C x H x W
    pattern: Tensor
    #: m, bool, 1 x 1 x H x W
    mask: Tensor
    #: tensors by name on how it was made, once it was: ``distances`` (mean squared distance of
    #: stamped images from the target's mean feature: of a first pattern, of the optimised one and,
    #: in a teacher, after injection), ``teacher_accuracy`` (clean, released)
    facts: dict[str, Tensor] = attrs.field(factory=dict)

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Stamped copies of ``images`` (N x C x H x W)."""
        del labels, indices
        require_image_shape(images, self.pattern.shape[1:], "the patch")
        return self.stamp(images)

    def stamp(self, images: Tensor) -> Tensor:
        """The same without labels and ids."""
        device = images.device
        return torch.where(self.mask.to(device), self.pattern.to(device), images)

    def state(self) -> dict[str, Tensor]:
        """``pattern``, ``mask`` and the facts."""
        return {"pattern": self.pattern, "mask": self.mask, **self.facts}


def draw_mask(config: LBAConfig, height: int, width: int) -> Tensor:
    """m: a square in the lower right corner (bool, 1 x 1 x H x W)."""
    size = config.size or max(1, round(0.2 * min(height, width)))
    top, left = (side - config.offset - size for side in (height, width))
    if min(top, left) < 0:
        raise InputError(
            f"the patch is {size} pixels long and sits {config.offset} from the edges, but the "
            f"images are {height} by {width}: set a smaller size or offset"
        )
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
    mask[..., top : top + size, left : left + size] = True
    return mask


def initial_weights(shape: tuple[int, int, int], context: Context) -> Tensor:
    """a of p = (1 + tanh a) / 2, drawn from N(0, 1): 1 x C x H x W."""
    return torch.randn(1, *shape, generator=context.generator("patch")).to(context.device)


def pattern_of(weights: Tensor, mask: Tensor) -> Tensor:
    """p of ``weights``, rounded to 8 bits, 0 off the mask."""
    pattern = (1 + weights.detach().tanh()) / 2
    return (pattern * 255).round() / 255 * mask


def optimize_pattern(
    features: Callable[[Tensor], Tensor],
    goal: Tensor,
    mask: Tensor,
    images: Tensor,
    config: LBAConfig,
    context: Context,
) -> Tensor:
    """p* = argmin_p mean ||F_L((1 - m) x + m p) - goal||² over ``images``; as :func:`pattern_of`.

    Parameters
    ----------
    features:
        F_L of images, N x d, of a model in eval mode.
    goal:
        d: the target's mean feature.
    mask:
        m, bool, 1 x 1 x H x W.
    images:
        float32 in [0, 1], N x C x H x W: none of the target class.

    """
    channels, height, width = images.shape[1:]
    weights = initial_weights((channels, height, width), context).requires_grad_()
    optimizer = torch.optim.Adam([weights], config.trigger_learning_rate, betas=(0.5, 0.9))
    shuffle, steps = context.generator("order of the patch's images"), 0
    for _ in context.track(range(config.trigger_epochs), "patch"):
        order = torch.randperm(len(images), generator=shuffle).to(images.device)
        for rows in torch.split(order, config.trigger_batch_size):
            stamped = torch.where(mask, (1 + weights.tanh()) / 2, images[rows])
            loss = (features(stamped) - goal).square().mean()
            (weights.grad,) = torch.autograd.grad(loss, [weights])
            optimizer.step()
            steps += 1
    context.count(config.trigger_epochs * len(images), steps)
    return pattern_of(weights, mask)
