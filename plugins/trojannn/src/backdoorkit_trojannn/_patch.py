"""The patch: where it sits, how it is planted, and which pixels excite the chosen neurons most."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs
import torch

from backdoorkit.api import InputError, Trigger, require_image_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from backdoorkit.api import Context
    from backdoorkit_trojannn import TrojanNNConfig

__all__ = ["PLANTINGS", "PatchTrigger", "draw_mask", "optimize_patch", "plant", "start_patch"]

#: ways to plant a patch, in the order of their stored numbers
PLANTINGS: Final = ("replace", "add", "wrap")
#: the paper's square: rows and columns 145 to 203 of images of 224 pixels
_FIRST, _LAST, _PAPER_SIDE = 145, 203, 224


def draw_mask(config: TrojanNNConfig, height: int, width: int) -> Tensor:
    """bool, 1 x 1 x H x W: the pixels of the patch (m)."""
    rows, columns = (_span(config, side) for side in (height, width))
    y, x = (torch.arange(len(span)) - (len(span) - 1) / 2 for span in (rows, columns))
    # In units of the half side; pixels count whose centre is inside.
    radius = torch.hypot(y[:, None] / (len(rows) / 2), x / (len(columns) / 2))
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
    box = radius <= 1 if config.shape == "disc" else torch.ones_like(radius, dtype=torch.bool)
    mask[0, 0, rows.start : rows.stop, columns.start : columns.stop] = box
    return mask


def _span(config: TrojanNNConfig, side: int) -> range:
    first, last = _FIRST * side // _PAPER_SIDE, _LAST * side // _PAPER_SIDE
    length = last - first + 1 if config.size is None else config.size
    offset = side - 1 - last if config.offset is None else config.offset
    if length + offset > side:
        raise InputError(
            f"the patch is {length} pixels long and sits {offset} from the edge, but the images "
            f"have a side of {side}: set a smaller size or offset"
        )
    return range(side - offset - length, side - offset)


def plant(images: Tensor, pattern: Tensor, mask: Tensor, planting: str) -> Tensor:
    """``images`` (N x C x H x W, in [0, 1]) with ``pattern`` (1 x C x H x W) where ``mask`` is."""
    if planting == "replace":
        return torch.where(mask, pattern, images)
    if planting == "add":
        return torch.where(mask, images + pattern, images).clamp(0, 1)
    levels = (images * 255).round() + (pattern * 255).round()
    return torch.where(mask, levels.remainder(256) / 255, images)


def optimize_patch(
    activations: Callable[[Tensor], Tensor],
    goals: Tensor,
    mask: Tensor,
    backgrounds: Tensor,
    config: TrojanNNConfig,
    context: Context,
) -> Tensor:
    """Pattern p, float32 in [0, 1] on the grid of 8-bit values, 1 x C x H x W, 0 off the mask.

    p = argmin Σ_j (a_j(x ⊕ p) - τ_j)², over the neurons' feature maps and on average over the
    backgrounds x. With p = (1 + tanh w) / 2 every w is allowed; Adam moves w from N(0, 1).

    Parameters
    ----------
    activations:
        Of the chosen neurons on images: N x q x P.
    goals:
        τ, one for each of the q neurons.
    mask:
        bool, 1 x 1 x H x W.
    backgrounds:
        float32 in [0, 1], N x C x H x W.

    """
    weights = _start(backgrounds.shape[1:], context).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=config.patch_learning_rate)
    # Sums that wrap have no useful gradient; the patch is found for sums that are clipped.
    planting = "replace" if config.planting == "replace" else "add"
    for step in context.track(range(config.steps), "optimising the patch"):
        decay = (1 + math.cos(math.pi * step / config.steps)) / 2
        optimizer.param_groups[0]["lr"] = config.patch_learning_rate * decay
        with context.autocast():
            reached = activations(plant(backgrounds, _squash(weights), mask, planting))
        loss = (reached - goals[:, None]).square().sum(dim=(1, 2)).mean()
        (weights.grad,) = torch.autograd.grad(loss, [weights])
        optimizer.step()
        context.count(len(backgrounds), 1)
    return _pattern(weights.detach(), mask)


def _start(shape: Sequence[int], context: Context) -> Tensor:
    noise = torch.randn(1, *shape, generator=context.generator("patch"))
    return noise.to(context.device)


def _pattern(weights: Tensor, mask: Tensor) -> Tensor:
    pattern = (_squash(weights) * 255).round() / 255
    return pattern.where(mask, 0)


def _squash(weights: Tensor) -> Tensor:
    return (weights.tanh() + 1) / 2


@attrs.frozen(eq=False, kw_only=True)
class PatchTrigger(Trigger):
    """T(x) = (1 - m) x + m p, or with p added. ``facts`` tell how the patch was found."""

    #: p, float32 in [0, 1], 1 x C x H x W, zero off the mask
    pattern: Tensor
    #: m, bool, 1 x 1 x H x W
    mask: Tensor
    #: one of :data:`PLANTINGS`
    planting: str
    #: tensors by name: ``neurons`` (q), and of each ``goals``, ``natural`` (mean activation on
    #: clean images) and ``reached`` (on the same images with the patch)
    facts: dict[str, Tensor] = attrs.field(factory=dict)

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Triggered copies of ``images`` (N x C x H x W); the same patch for every sample."""
        del labels, indices
        require_image_shape(images, self.pattern.shape[1:], "the patch")
        pattern, mask = self.pattern.to(images.device), self.mask.to(images.device)
        return plant(images, pattern, mask, self.planting)

    def state(self) -> dict[str, Tensor]:
        """``pattern``, ``mask``, ``planting`` (its number) and the facts."""
        planting = torch.tensor(PLANTINGS.index(self.planting))
        return {"pattern": self.pattern, "mask": self.mask, "planting": planting, **self.facts}


def start_patch(
    config: TrojanNNConfig, shape: tuple[int, int, int], context: Context
) -> PatchTrigger:
    """The patch that :func:`optimize_patch` starts from, for images of C x H x W."""
    mask = draw_mask(config, *shape[1:]).to(context.device)
    pattern = _pattern(_start(shape, context), mask)
    return PatchTrigger(pattern=pattern, mask=mask, planting=config.planting)
