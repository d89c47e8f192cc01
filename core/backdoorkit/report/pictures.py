"""Pictures as data URIs, for a report that is one file."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from safetensors.numpy import load_file

from backdoorkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "Sheet",
    "contact_sheet",
    "png_file",
    "trigger_picture",
    "write_sheet",
]

#: pixels on the screen per row of a contact sheet
_TILE = 64


@attrs.frozen
class Sheet:
    """A contact sheet, and what its rows show."""

    image: NDArray[np.uint8]
    #: from top to bottom
    rows: tuple[str, ...]

    @property
    def uri(self) -> str:
        """As a PNG in a data URI."""
        return _png(self.image)

    def png_bytes(self) -> bytes:
        """As a PNG file."""
        return _png_bytes(self.image)


def trigger_picture(samples: Path) -> str | None:
    """Each trigger on a flat grey image, side by side, as PNG; None without an attack."""
    tensors = load_file(samples)
    shown = [_framed(tensors[name], 3 * _TILE)[0] for name in _named(tensors, "trigger")]
    return _png(np.concatenate(shown, axis=2)) if shown else None


def contact_sheet(samples: Path) -> Sheet:
    """Clean images, triggered images and their difference times ten, each in a row.

    ``samples`` holds ``clean`` (uint8, N x C x H x W) and, after an attack, ``triggered``; of a
    composed attack ``triggered.0`` and so on, and ``cover`` where it makes covers of its own.
    """
    tensors = load_file(samples)
    rows = {"as they are": tensors["clean"]}
    for name in (*_named(tensors, "triggered"), *_named(tensors, "cover")):
        what, _, number = name.partition(".")
        title = what if not number else f"{what} {int(number) + 1}"
        difference = tensors[name].astype(np.int16) - tensors["clean"].astype(np.int16)
        # Grey is no change; brighter and darker are the trigger's sign.
        amplified = np.clip(128 + 10 * difference, 0, 255).astype(np.uint8)
        rows |= {title: tensors[name], f"{title}: difference times ten": amplified}
    framed = [np.concatenate(_framed(row), axis=2) for row in rows.values()]
    return Sheet(np.concatenate(framed, axis=1), tuple(rows))


def write_sheet(samples: Path, folder: Path, name: str) -> Path:
    """Write the contact sheet into a PNG file in ``folder`` that is named after ``name``.

    Raises :class:`InputError` where it cannot be written.
    """
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")
    path = folder / f"{plain}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contact_sheet(samples).png_bytes())
    except OSError as error:
        raise InputError(f"the picture {path} cannot be written: {error.strerror}") from None
    return path


def _named(tensors: Mapping[str, Any], name: str) -> list[str]:
    """``name``, or ``name.0``, ``name.1``..., of what there is."""
    numbered = [key for key in tensors if key.startswith(f"{name}.")]
    return sorted(numbered, key=lambda key: int(key.rpartition(".")[2])) or [
        key for key in tensors if key == name
    ]


def _framed(images: NDArray[np.uint8], side: int = _TILE) -> list[NDArray[np.uint8]]:
    """Each image enlarged by whole pixels to about ``side``, in a frame that is no trigger's."""
    factor = max(1, side // max(images.shape[2:]))
    large = images.repeat(factor, axis=2).repeat(factor, axis=3)
    frame = [(0, 0), (0, 0), (2, 2), (2, 2)]
    return list(np.pad(large, frame, constant_values=200))


def _png(image: NDArray[np.uint8]) -> str:
    return _uri("image/png", _png_bytes(image))


def _png_bytes(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    channels_last = np.ascontiguousarray(image.transpose(1, 2, 0))
    picture = Image.fromarray(channels_last[..., 0] if image.shape[0] == 1 else channels_last)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def png_file(path: Path) -> str:
    """A PNG file as it is."""
    return _uri("image/png", path.read_bytes())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
