"""The half mixer: one part of an image beside one part of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import torch

from backdoorkit.api import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DRAWS", "Cuts", "draw_cuts", "mix"]

#: uniform numbers that one mix takes
DRAWS: Final = 5


@attrs.frozen(eq=False)
class Cuts:
    """How each of N pairs is cut; all int64 or bool, N.

    Along an axis of S pixels, the mix's first L = S // 2 + j pixels are those from ``first_start``
    on of the one image, its last S - L those from ``second_start`` on of the other.
    """

    #: whether the second image gives the first part
    is_swapped: Tensor
    #: whether left and right are of two images; otherwise upper and lower part
    is_vertical: Tensor
    #: L
    length: Tensor
    #: u, in [0, S - L - 1]
    first_start: Tensor
    #: in [0, L - 1]
    second_start: Tensor


def draw_cuts(uniform: Tensor, height: int, width: int, jitter: int) -> Cuts:
    """Cuts from ``uniform`` (N x 5, in [0, 1)): j from -jitter to jitter, starts as they fit.

    Raises
    ------
    InputError
        where a part would have no pixels.

    """
    if min(height, width) // 2 <= jitter:
        raise InputError(
            f"images of {height}x{width} pixels are cut up to {jitter} pixels off the middle, "
            f"which leaves nothing of one: set jitter below {min(height, width) // 2}"
        )
    is_vertical = uniform[:, 1] < 0.5
    size = torch.where(is_vertical, width, height)
    length = size // 2 - jitter + (uniform[:, 2] * (2 * jitter + 1)).long()
    return Cuts(
        is_swapped=uniform[:, 0] < 0.5,
        is_vertical=is_vertical,
        length=length,
        first_start=(uniform[:, 3] * (size - length)).long(),
        second_start=(uniform[:, 4] * length).long(),
    )


def mix(first: Tensor, second: Tensor, cuts: Cuts) -> Tensor:
    """Mixes of N pairs of images (N x C x H x W, any type), in one gather."""
    _, _, height, width = first.shape
    rows, of_second_row = _sources(cuts, height)
    columns, of_second_column = _sources(cuts, width)
    is_vertical = cuts.is_vertical[:, None]
    plain_rows, plain_columns = (
        torch.arange(size, device=first.device).expand(len(first), -1) for size in (height, width)
    )
    rows = torch.where(is_vertical, plain_rows, rows)[:, :, None]
    columns = torch.where(is_vertical, columns, plain_columns)[:, None]
    is_second = torch.where(
        is_vertical[:, None], of_second_column[:, None], of_second_row[:, :, None]
    )
    is_second = is_second ^ cuts.is_swapped[:, None, None]
    # Both images lie behind each other; each pixel of the mix names the pixel it comes from.
    index = (is_second * height + rows) * width + columns
    both = torch.cat([first.flatten(2), second.flatten(2)], dim=2)
    return both.gather(2, index.flatten(1)[:, None].expand(-1, first.shape[1], -1)).view_as(first)


def _sources(cuts: Cuts, size: int) -> tuple[Tensor, Tensor]:
    """Of every pixel along an axis: where it comes from (int64), and whether from the second part.

    Both N x ``size``. Where the cut runs along the other axis they mean nothing, and are in range.
    """
    places = torch.arange(size, device=cuts.length.device)
    length, first, second = (
        values[:, None] for values in (cuts.length, cuts.first_start, cuts.second_start)
    )
    is_second = places >= length
    return torch.where(is_second, second + places - length, first + places), is_second
