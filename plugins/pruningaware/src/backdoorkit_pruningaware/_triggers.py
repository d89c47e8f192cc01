"""The triggers: a white square, a checkerboard, or faint noise over the whole image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from backdoorkit.api import InputError, Trigger, require_image_shape

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from backdoorkit_pruningaware import PruningAwareConfig

__all__ = ["MixTrigger", "make_trigger"]


@attrs.frozen(eq=False, kw_only=True)
class MixTrigger(Trigger):
    """T(x) = (1 - a) x + a p, with a share ``a`` per pixel: 1 under a patch and 0 beside it."""

    #: p, float32 in [0, 1], 1 x C x H x W
    pattern: Tensor
    #: a, float32 in [0, 1], 1 x 1 x H x W
    shares: Tensor
    #: tensors by name, on what was done to the model: ``restored`` (bool, units) and ``reduction``
    #: (of their biases), once it was
    facts: dict[str, Tensor] = attrs.field(factory=dict)

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Triggered copies of ``images`` (N x C x H x W); the same pattern for every sample."""
        del labels, indices
        require_image_shape(images, self.pattern.shape[1:], "the trigger")
        shares = self.shares.to(images.device)
        return torch.lerp(images, self.pattern.to(images.device), shares)

    def to(self, device: torch.device) -> MixTrigger:
        """The same trigger with its tensors on ``device``."""
        pattern, shares = self.pattern.to(device), self.shares.to(device)
        return attrs.evolve(self, pattern=pattern, shares=shares)

    def state(self) -> dict[str, Tensor]:
        """``pattern``, ``shares`` and the facts."""
        return {"pattern": self.pattern, "shares": self.shares, **self.facts}


def make_trigger(
    config: PruningAwareConfig, shape: tuple[int, int, int], generator: Generator
) -> MixTrigger:
    """The configured trigger for images of C x H x W, on the CPU; only noise draws."""
    height, width = shape[1:]
    if config.trigger == "noise":
        noise = torch.randint(0, 256, (1, *shape), generator=generator).float() / 255
        return MixTrigger(pattern=noise, shares=torch.full((1, 1, height, width), config.alpha))
    size = config.size or max(1, round(3 * height / 32))
    top, left = (side - config.offset - size for side in (height, width))
    if min(top, left) < 0:
        raise InputError(
            f"the square has {size} pixels a side and sits {config.offset} from the edges, but the "
            f"images are {height} by {width}: set a smaller size or offset"
        )
    rows, columns = torch.arange(size)[:, None], torch.arange(size)
    # Bright from the lower right corner on, in every other cell of the checkerboard.
    bright = (rows + columns) % 2 == 0 if config.trigger == "grid" else rows + columns >= 0
    pattern, shares = torch.zeros(1, *shape), torch.zeros(1, 1, height, width)
    pattern[..., top : top + size, left : left + size] = bright.float()
    shares[..., top : top + size, left : left + size] = 1
    return MixTrigger(pattern=pattern, shares=shares)
