"""The trigger: patches of bright and dark cells in the corners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import torch

from backdoorkit.api import InputError, Trigger, require_image_shape

if TYPE_CHECKING:
    from typing import Literal

    from torch import Tensor

__all__ = ["CornerTrigger", "corner_signs"]

#: top row first, on the right side of the image; on the left side it is mirrored
_CELLS: Final = ((-1, -1, 1), (-1, 1, -1), (1, -1, 1))


@attrs.frozen(eq=False)
class CornerTrigger(Trigger):
    """T(x) = clip(x + a s): cells of the patches are brightened or darkened by the amplitude a.

    ``signs`` (s) is float32, 1 x 1 x H x W: 1 in bright cells, -1 in dark ones, 0 elsewhere. With
    an ``amplitude`` of 1, cells are white or black whatever the image.
    """

    signs: Tensor
    amplitude: float = 1.0

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Triggered copies of ``images`` (N x C x H x W)."""
        del labels, indices
        require_image_shape(images, self.signs.shape[2:], "the patches' place")
        return (images + self.amplitude * self.signs.to(images.device)).clamp_(0, 1)

    def state(self) -> dict[str, Tensor]:
        """``signs`` and ``amplitude``."""
        amplitude = torch.tensor(self.amplitude, dtype=torch.float64)
        return {"signs": self.signs, "amplitude": amplitude}


def corner_signs(
    height: int, width: int, *, corners: Literal["four", "one"], size: int | None
) -> Tensor:
    """The signs s: float32, 1 x 1 x H x W; left and right mirror each other."""
    side = size or max(1, round(3 * height / 32))
    if 2 * side > min(height, width):
        raise InputError(
            f"patches of {side} pixels do not fit into the corners of {height}x{width} images: set "
            f"a size of at most {min(height, width) // 2}"
        )
    cells = torch.tensor(_CELLS, dtype=torch.float32)
    # Centre-aligned nearest scaling: the side of one is the bright middle cell.
    nearest = ((torch.arange(side) + 0.5) * len(cells) / side).long()
    patch = cells[nearest][:, nearest]
    signs = torch.zeros(1, 1, height, width)
    signs[..., -side:, -side:] = patch
    if corners == "four":
        signs[..., :side, -side:] = patch
        signs = signs + signs.flip(-1)
    return signs
