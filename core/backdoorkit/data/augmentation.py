"""Random crop and mirroring, drawn per sample and carried out for the whole batch at once."""

from __future__ import annotations

import attrs
import torch
from torch import Generator, Tensor
from torch.nn import functional

from backdoorkit.errors import ContractError

__all__ = ["Augmentation", "crop_and_mirror"]


@attrs.frozen
class Augmentation:
    """The usual training augmentation of small photographs, on whatever device they are.

    Random numbers are drawn on the generator's device, so that a CPU generator augments alike
    everywhere.
    """

    #: pixels of black border, from which a window of the image's own size is cut at random
    crop_padding: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    #: mirror each image with probability one half
    horizontal_flip: bool = False

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Augmented copies of ``images`` (N x C x H x W, any type)."""
        if self.crop_padding == 0 and not self.horizontal_flip:
            return images
        drawn = self.draw(len(images), generator)
        if images.is_cuda and not drawn.is_cuda:
            drawn = drawn.pin_memory()  # so that nobody waits for the copy
        rows, columns, mirrored = drawn.to(images.device, non_blocking=images.is_cuda)
        return crop_and_mirror(images, rows, columns, mirrored.bool(), padding=self.crop_padding)

    def draw(self, count: int, generator: Generator) -> Tensor:
        """What happens to each of ``count`` images: int64, 3 x count.

        Row and column of the window's corner in the padded image, uniform in [0, 2 padding], and
        0 or 1 for mirroring.
        """
        drawn = torch.zeros((3, count), dtype=torch.int64, device=generator.device)
        if self.crop_padding:
            drawn[:2].random_(0, 2 * self.crop_padding + 1, generator=generator)
        if self.horizontal_flip:
            drawn[2].random_(0, 2, generator=generator)
        return drawn


def crop_and_mirror(
    images: Tensor, rows: Tensor, columns: Tensor, mirrored: Tensor, *, padding: int
) -> Tensor:
    """Cut from each zero-padded image the window at its offset, and mirror it where asked.

    Parameters
    ----------
    images:
        N x C x H x W, any type.
    rows, columns:
        int64, N, in [0, 2 ``padding``]: the window's upper left corner in the padded image.
    mirrored:
        bool, N: left and right of the window change places.
    padding:
        Pixels of zeros on every side.

    """
    count, channels, height, width = images.shape
    if not (rows.shape == columns.shape == mirrored.shape == (count,)):
        raise ContractError(f"expected one offset and one flag for each of {count} images")
    across = torch.arange(width, device=images.device)
    # One gather does both: each pixel of the result names the pixel it comes from.
    from_columns = torch.where(mirrored[:, None], across.flip(0), across) + columns[:, None]
    from_rows = torch.arange(height, device=images.device) + rows[:, None]
    padded = functional.pad(images, (padding,) * 4) if padding else images
    flat = from_rows[:, :, None] * padded.shape[-1] + from_columns[:, None, :]
    index = flat.reshape(count, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view(count, channels, height, width)
