"""Reading the picture that serves as a patch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from PIL import Image

from backdoorkit.api import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["read_picture"]

#: formats whose decoders start no other program
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF")
#: longest side that is decoded; a small file can announce an enormous picture
_LONGEST_SIDE: Final = 4096
#: alpha from here on counts as opaque: the mask of BadNets is all or nothing
_OPAQUE: Final = 128


def read_picture(path: Path, channels: int, size: int | None) -> tuple[Tensor, Tensor]:
    """Colours (uint8, C x h x w) and opacity (bool, h x w) of a picture file.

    ``size`` is the longer side after scaling, which keeps the proportions; None keeps the
    picture's own. Raises :class:`InputError` for a file that is no readable picture, or one with
    nothing opaque in it.
    """
    if channels not in (1, 3):
        raise InputError(f"a picture as patch needs images of 1 or 3 channels, not {channels}")
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            if max(picture.size) > _LONGEST_SIDE:
                raise InputError(
                    f"patch image {path} measures {picture.width}x{picture.height} pixels, more "
                    f"than {_LONGEST_SIDE} on a side: scale it down first"
                )
            layers = np.array(_scaled(picture.convert("RGBA"), size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"cannot read patch image {path}: expected a {', '.join(_FORMATS)} picture ({error})"
        ) from error
    opaque = torch.from_numpy(layers[..., 3] >= _OPAQUE)
    if not opaque.any():
        raise InputError(f"patch image {path} is transparent everywhere: there is nothing to plant")
    colours = layers[..., :3]
    if channels == 1:
        colours = np.array(Image.fromarray(colours).convert("L"))[..., None]
    return torch.from_numpy(np.ascontiguousarray(colours.transpose(2, 0, 1))), opaque


def _scaled(picture: Image.Image, size: int | None) -> Image.Image:
    if size is None or size == max(picture.size):
        return picture
    width, height = (max(1, round(side * size / max(picture.size))) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BILINEAR)
