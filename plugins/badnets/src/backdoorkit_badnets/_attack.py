"""The BadNets attack (Gu et al., arXiv:1708.06733)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import torch

from backdoorkit.api import Attack, InputError, Trigger, require_image_shape
from backdoorkit_badnets import BadNetsConfig
from backdoorkit_badnets._picture import read_picture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.api import Context, ImageSet

__all__ = ["BadNets", "PatchTrigger"]

#: the checkerboard of the ABL, NAD, RNP and ANP code, top row first; black cells are opaque too
_GRID: Final = ((0, 0, 255), (0, 255, 0), (255, 0, 255))
_CORNERS: Final = ("top-left", "top-right", "bottom-left", "bottom-right")


@attrs.frozen(eq=False)
class PatchTrigger(Trigger):
    """T(x) = (1 - m) x + m p: what is inside the mask is replaced, black pixels included.

    ``pattern`` (p) is float32 in [0, 1], 1 x C x H x W, and zero outside the mask; ``mask`` (m) is
    bool, 1 x 1 x H x W.
    """

    pattern: Tensor
    mask: Tensor

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Triggered copies of ``images`` (N x C x H x W); the same patch for every sample."""
        del labels, indices
        require_image_shape(images, self.pattern.shape[1:], "the patch")
        return torch.where(self.mask.to(images.device), self.pattern.to(images.device), images)

    def state(self) -> dict[str, Tensor]:
        """``pattern`` and ``mask``."""
        return {"pattern": self.pattern, "mask": self.mask}


class BadNets(Attack[BadNetsConfig]):
    """A fixed patch of a few pixels, replaced into a corner.

    The mask is explicit: a black cell of the patch is opaque, unlike in code that reads the mask
    off the non-zero pixels.
    """

    def prepare(self, data: ImageSet, context: Context) -> PatchTrigger:
        """Place the patch on a canvas of the images' shape; draws nothing at random."""
        channels, height, width = data.shape
        colours, opaque = self._patch(channels, height)
        pattern = torch.zeros(1, channels, height, width)
        mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
        everywhere = self.config.corner == "all"
        for corner in _CORNERS if everywhere else (self.config.corner,):
            rows, columns = self._place(corner, opaque.shape, (height, width))
            # Mirror images left and right, so that a flipped image has the same trigger.
            mirrored = (-1,) if everywhere and corner.endswith("left") else ()
            mask[0, 0, rows, columns] = opaque.flip(mirrored)
            pattern[0, :, rows, columns] = (colours.float() / 255 * opaque).flip(mirrored)
        return PatchTrigger(pattern.to(context.device), mask.to(context.device))

    def restore(self, state: Mapping[str, Tensor]) -> PatchTrigger:
        """The trigger from its stored ``pattern`` and ``mask``."""
        return PatchTrigger(state["pattern"], state["mask"].bool())

    def _patch(self, channels: int, height: int) -> tuple[Tensor, Tensor]:
        """Colours (uint8, C x h x w) and opacity (bool, h x w) of the patch alone."""
        config = self.config
        if config.patch_image is not None:
            return read_picture(config.patch_image, channels, config.size)
        size = config.size or max(1, round(3 * height / 32))
        cells = torch.tensor(_GRID if config.trigger == "grid" else ((255,),), dtype=torch.uint8)
        # Centre-aligned nearest scaling: the side of one is the grid's bright middle cell.
        nearest = ((torch.arange(size) + 0.5) * len(cells) / size).long()
        colours = cells[nearest][:, nearest].expand(channels, size, size)
        return colours, torch.ones(size, size, dtype=torch.bool)

    def _place(self, corner: str, patch: torch.Size, image: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the image that the patch covers."""
        offset = self.config.offset
        for side, length, limit in zip(("high", "wide"), patch, image, strict=True):
            if length + offset > limit:
                raise InputError(
                    f"the patch is {length} pixels {side} and sits {offset} from the edge, but "
                    f"the images are {limit} pixels {side}: set a smaller size or offset"
                )
        vertical, horizontal = corner.split("-")
        top = offset if vertical == "top" else image[0] - offset - patch[0]
        left = offset if horizontal == "left" else image[1] - offset - patch[1]
        return slice(top, top + patch[0]), slice(left, left + patch[1])
