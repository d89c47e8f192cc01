"""The patterns that are mixed in: fixed noise, a drawing, a picture, noise per sample.

All patterns lie on the grid of 8-bit values, so that they can be stored and shown exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image

from backdoorkit.api import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Generator, Tensor

__all__ = ["draw_cartoon", "draw_noise", "noise_by_sample", "read_picture"]

#: formats whose decoders start no other program
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF")
#: longest side that is decoded; a small file can announce an enormous picture
_LONGEST_SIDE: Final = 4096

_DISCS: Final = 7
_BARS: Final = 3
_BORDER: Final = 0.05  # of each side

_LOW_32_BITS: Final = 0xFFFFFFFF
_GOLDEN_RATIO: Final = 0x9E3779B9  # 2^32 / φ: consecutive counters land far apart


def draw_noise(shape: tuple[int, int, int], generator: Generator, *, grey: bool) -> Tensor:
    """Uniform noise, float32 in [0, 1], C x H x W; the same in all channels where ``grey``."""
    channels, height, width = shape
    values = torch.randint(0, 256, (1 if grey else channels, height, width), generator=generator)
    return (values.float() / 255).expand(shape).contiguous()


def draw_cartoon(shape: tuple[int, int, int], generator: Generator) -> Tensor:
    """A drawing of flat discs and bars within a dark border, float32 in [0, 1], C x H x W.

    It has the large plain areas of the cartoon pictures that the literature mixes in. The seed
    decides the drawing; the image's size decides only how finely it is drawn.
    """
    channels, height, width = shape
    x = ((torch.arange(width) + 0.5) / width).expand(height, width)
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    pixel = 1 / min(height, width)
    colours = torch.rand(1 + _DISCS + _BARS, 3, 1, 1, generator=generator)
    numbers = torch.rand(_DISCS + _BARS, 3, generator=generator).tolist()

    picture = (0.6 + 0.4 * colours[0]).expand(3, height, width)
    for position, (colour, (first, second, third)) in enumerate(
        zip(colours[1:], numbers, strict=True)
    ):
        if position < _DISCS:
            inside = 0.08 + 0.17 * third - torch.hypot(x - first, y - second)
        else:
            across = y if third < 0.5 else x
            inside = 0.02 + 0.06 * second - (across - first).abs()
        coverage = (inside / pixel + 0.5).clamp(0, 1)  # edges one pixel soft
        picture = torch.lerp(picture, colour.expand_as(picture), coverage)
    to_edge = torch.minimum(torch.minimum(x, 1 - x), torch.minimum(y, 1 - y))
    picture = picture * ((to_edge - _BORDER) / pixel + 0.5).clamp(0, 1)

    picture = (
        picture.mean(0, keepdim=True) if channels == 1 else picture[torch.arange(channels) % 3]
    )
    return (picture * 255).round() / 255


def read_picture(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """The picture in ``path`` scaled to ``shape``, float32 in [0, 1], C x H x W.

    Raises :class:`InputError` for a file that is no readable picture.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise InputError(f"a picture as pattern needs images of 1 or 3 channels, not {channels}")
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            if max(picture.size) > _LONGEST_SIDE:
                raise InputError(
                    f"pattern image {path} measures {picture.width}x{picture.height} pixels, more "
                    f"than {_LONGEST_SIDE} on a side: scale it down first"
                )
            plain = picture.convert("L" if channels == 1 else "RGB")
            values = np.array(plain.resize((width, height), Image.Resampling.BILINEAR))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"cannot read pattern image {path}: expected a {', '.join(_FORMATS)} picture ({error})"
        ) from error
    return (
        torch.from_numpy(values)
        .float()
        .div(255)
        .reshape(height, width, channels)
        .permute(2, 0, 1)
        .contiguous()
    )


def noise_by_sample(ids: Tensor, shape: tuple[int, int, int], key: int, stream: int) -> Tensor:
    """Uniform noise that depends on each sample's id alone, float32 in [0, 1], N x C x H x W.

    ``ids`` is int64, N; ``key`` and ``stream`` (below 2^31) tell independent noises apart. A hash
    of counters in place of a generator: the result is the same for every batching and device.
    """
    channels, height, width = shape
    count = channels * height * width
    start = _hash(_hash(_hash(ids) ^ key) + stream)
    counters = torch.arange((count + 3) // 4, device=ids.device) * _GOLDEN_RATIO
    words = _hash(start[:, None] + counters)
    # Eight bytes per word, of which the low four carry the hash.
    values = words.view(torch.uint8).view(len(ids), -1, 8)[..., :4].reshape(len(ids), -1)
    return values[:, :count].reshape(-1, channels, height, width).float() / 255


def _hash(values: Tensor) -> Tensor:
    """A well-mixed 32-bit hash in int64; the multipliers stay below 2^31, so nothing overflows."""
    values = values & _LOW_32_BITS
    for shift, multiplier in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        values = ((values ^ (values >> shift)) * multiplier) & _LOW_32_BITS
    return values ^ (values >> 15)
