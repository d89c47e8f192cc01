"""Projected gradient ascent, and surrogates that are trained against it (Madry et al., 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import torch
from torch.nn import functional

from backdoorkit.api import TrainingHooks

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from backdoorkit.api import Batch, Context

__all__ = ["AdversarialTraining", "Ascent", "ascend"]


@attrs.frozen(kw_only=True)
class Ascent:
    """A bound on the change of images, and the steps within it; lengths in units of pixels."""

    #: what the bound is on: each value, or the length over the image
    norm: Literal["linf", "l2"]
    #: ε
    radius: float
    step: float
    steps: int

    def direction(self, slope: Tensor) -> Tensor:
        """The steepest step of length 1 in this norm, for each image of ``slope``."""
        if self.norm == "linf":
            return slope.sign()
        return functional.normalize(slope.flatten(1), dim=1).view_as(slope)

    def project(self, images: Tensor, centres: Tensor) -> Tensor:
        """``images`` moved into the bound around ``centres``, then into [0, 1]."""
        if self.norm == "linf":
            inside = torch.clamp(images, centres - self.radius, centres + self.radius)
        else:
            # Cutting to [0, 1] afterwards only comes nearer to the centres, which lie there.
            change = torch.renorm(images - centres, 2, 0, self.radius)
            inside = centres + change
        return inside.clamp(0, 1)

    def anywhere(self, images: Tensor, generator: Generator) -> Tensor:
        """A random start within the bound around ``images``."""
        noise = torch.rand(images.shape, generator=generator).to(images.device) * 2 - 1
        if self.norm == "l2":
            noise = functional.normalize(noise.flatten(1), dim=1).view_as(images)
        return self.project(images + self.radius * noise, images)


def ascend(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    ascent: Ascent,
    context: Context,
    start: Tensor | None = None,
) -> Tensor:
    """Images near ``images`` on which ``model`` is wrong: x ← project(x + a · direction(∇CE)).

    ``model`` must be in eval mode: batch norm would tie the images of a batch together. The result
    is float32 in [0, 1], N x C x H x W, within the bound around ``images``.
    """
    moved = images if start is None else start
    for _ in range(ascent.steps):
        moved = moved.detach().requires_grad_()
        with context.autocast():
            logits = model(moved).float()
        # The sum, so that an image's gradient does not depend on the size of the batch.
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, [moved])
        moved = ascent.project(moved.detach() + ascent.step * ascent.direction(slope), images)
        context.count(len(images), 0)
    return moved.detach()


class AdversarialTraining(TrainingHooks):
    """Trains on adversarial images in place of the clean ones."""

    def __init__(self, ascent: Ascent, context: Context) -> None:
        self._ascent, self._context = ascent, context

    def transform_batch(self, batch: Batch, epoch: int) -> Batch:
        """Images that are adversarial to the model as it is."""
        del epoch
        self.model.eval()
        images = ascend(self.model, batch.images, batch.labels, self._ascent, self._context)
        self.model.train()
        return attrs.evolve(batch, images=images)
