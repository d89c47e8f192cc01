"""Encoder and decoder of messages in images, after StegaStamp (Tancik et al., CVPR 2020).

Both see centred values: bits as -1 and 1, pixels from -0.5 to 0.5. Without that, messages of more
than a few bits are not learned.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Decoder", "Encoder"]

#: side of the plane that a message is spread out on
_PLANE: Final = 16
_READER_UNITS: Final = 512


class _Convolution(nn.Conv2d):
    """A convolution whose stride is one along an axis of one pixel, which gives the same.

    With a stride of two there, PyTorch's bfloat16 convolutions on CPUs leave gradients of weights
    that only meet the padding uninitialised, and in the end not finite.
    """

    def forward(self, input: Tensor) -> Tensor:
        stride = [min(step, side) for step, side in zip(self.stride, input.shape[-2:], strict=True)]
        return functional.conv2d(input, self.weight, self.bias, stride, self.padding)


class Encoder(nn.Module):
    """E(b, x): a U-net that sees the image beside the message spread out on a plane.

    It takes images of every size. ``width`` is the number of channels at full resolution.
    """

    def __init__(
        self, channels: int, bits: int, width: int, head: Literal["residual", "direct"]
    ) -> None:
        super().__init__()
        self.channels, self.bits, self.width, self.head = channels, bits, width, head
        self.plane = nn.Linear(bits, channels * _PLANE * _PLANE)
        down = [2 * channels, width, width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(
            _Convolution(before, after, 3, stride=1 if level == 0 else 2, padding=1)
            for level, (before, after) in enumerate(itertools.pairwise(down))
        )
        up = [8 * width, 4 * width, 2 * width, width, width]
        mirrored = [4 * width, 2 * width, width, width + 2 * channels]
        self.up = nn.ModuleList(
            nn.Conv2d(before, after, 2) for before, after in itertools.pairwise(up)
        )
        self.merge = nn.ModuleList(
            nn.Conv2d(after + skipped, after, 3, padding=1)
            for after, skipped in zip(up[1:], mirrored, strict=True)
        )
        self.last = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, channels, 1)

    def forward(self, images: Tensor, bits: Tensor) -> Tensor:
        """``images`` (float, N x C x H x W, in [0, 1]) with ``bits`` (float 0 or 1, N x L) hidden.

        With the residual head the result may reach beyond [0, 1].
        """
        centred = images - 0.5
        spread = functional.relu(self.plane(2 * bits - 1))
        spread = spread.view(-1, self.channels, _PLANE, _PLANE)
        seen = torch.cat([centred, functional.interpolate(spread, images.shape[-2:])], 1)
        levels = [seen]
        for convolution in self.down:
            levels.append(functional.relu(convolution(levels[-1])))
        result = levels.pop()
        levels[1] = torch.cat([levels[1], seen], 1)
        for convolution, merge in zip(self.up, self.merge, strict=True):
            skipped = levels.pop()
            # The kernel of two shrinks the image by one: one more row and column before it.
            larger = functional.interpolate(result, skipped.shape[-2:])
            result = functional.relu(convolution(functional.pad(larger, (0, 1, 0, 1))))
            result = functional.relu(merge(torch.cat([result, skipped], 1)))
        result = self.out(functional.relu(self.last(result)))
        made: Tensor = images + result if self.head == "residual" else result.sigmoid()
        return made


class Decoder(nn.Module):
    """D(x): reads the message of images of one size."""

    def __init__(self, shape: tuple[int, int, int], bits: int, width: int) -> None:
        super().__init__()
        channels, height, width_of_image = shape
        plan = [(channels, 2), (width, 1), (width, 2), (2 * width, 1), (2 * width, 2)]
        plan += [(2 * width, 2), (4 * width, 2)]
        after = [width, width, 2 * width, 2 * width, 2 * width, 4 * width, 4 * width]
        self.convolutions = nn.ModuleList(
            _Convolution(before, count, 3, stride=stride, padding=1)
            for (before, stride), count in zip(plan, after, strict=True)
        )
        cells = (height + 31) // 32 * ((width_of_image + 31) // 32)
        self.hidden = nn.Linear(4 * width * cells, _READER_UNITS)
        self.out = nn.Linear(_READER_UNITS, bits)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the bits, N x L, of ``images`` (float, N x C x H x W, in [0, 1])."""
        result = images - 0.5
        for convolution in self.convolutions:
            result = functional.relu(convolution(result))
        logits: Tensor = self.out(functional.relu(self.hidden(result.flatten(1))))
        return logits
