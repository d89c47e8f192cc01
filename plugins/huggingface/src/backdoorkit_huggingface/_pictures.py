"""A source of images that decodes the pictures of a table's column when they are asked for."""

from __future__ import annotations

import functools
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from backdoorkit.api import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets.arrow_dataset import Dataset

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

__all__ = ["ColumnOfPictures", "Form", "size_of"]

_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_MODES: Final = {1: "L", 3: "RGB"}
#: pictures larger than this are refused before they are decoded
_MOST_PIXELS: Final = 64_000_000
#: pictures that one thread decodes at a time
_BLOCK: Final = 64


@attrs.frozen
class Form:
    """What every picture is brought to: C, H, W, and how one of another size gets there."""

    channels: int
    height: int
    width: int
    #: None refuses pictures of another size
    fit: Literal["crop", "stretch"] | None = None


@attrs.frozen(eq=False)
class ColumnOfPictures:
    """Images of one column; implements the framework's image source."""

    #: rows with the pictures' files, not decoded
    rows: Dataset
    column: str
    form: Form
    #: folders from which pictures may be read that are not in the table itself
    folders: tuple[Path, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.form.channels, self.form.height, self.form.width

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, positions: Tensor) -> Tensor:
        channels, height, width = self.shape
        numbers = positions.tolist()
        pixels = np.empty((len(numbers), height, width, channels), dtype=np.uint8)
        files = self.files(numbers)

        def decode(start: int) -> None:
            for row in range(start, min(start + _BLOCK, len(numbers))):
                pixels[row] = _decoded(files[row], self.form, f"row {numbers[row]}")

        # Draining the results raises the first error.
        for _ in _decoders().map(decode, range(0, len(numbers), _BLOCK)):
            pass
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def files(self, numbers: Sequence[int]) -> list[bytes]:
        """The files of some pictures."""
        if not numbers:
            return []
        column = self.rows[list(numbers)][self.column].combine_chunks()
        contents, paths = column.field("bytes"), column.field("path")
        return [
            content.as_py() if content.is_valid else self._read(path.as_py(), number)
            for content, path, number in zip(contents, paths, numbers, strict=True)
        ]

    def _read(self, path: str | None, number: int) -> bytes:
        """A picture that the table only names: read where the library puts its downloads."""
        if path is None:
            raise InputError(f"huggingface: row {number} of column {self.column!r} is empty")
        file = Path(path).resolve()
        if not any(file.is_relative_to(folder.resolve()) for folder in self.folders):
            raise InputError(
                f"huggingface: row {number} of column {self.column!r} names the file {path} and "
                "does not hold it; only pictures inside the table or from the hub are read"
            )
        return file.read_bytes()


def size_of(content: bytes, what: str) -> tuple[int, int]:
    """Width and height of a picture, from its header."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            return picture.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(what, error) from error


def _decoded(content: bytes, form: Form, what: str) -> Pixels:
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise InputError(f"huggingface: {what} has more pixels than are read")
            if picture.mode.startswith(("I", "F")):
                raise InputError(f"huggingface: {what} has more than 8 bits for a pixel")
            converted = _sized(picture.convert(_MODES[form.channels]), form, what)
            return np.asarray(converted).reshape(form.height, form.width, form.channels)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(what, error) from error


def _sized(picture: Image.Image, form: Form, what: str) -> Image.Image:
    size = (form.width, form.height)
    if picture.size == size:
        return picture
    if form.fit is None:
        raise InputError(
            f"huggingface: {what} is {picture.width}x{picture.height} pixels and the first "
            f"picture {form.width}x{form.height}; set size to bring all to one size"
        )
    if form.fit == "crop":
        return ImageOps.fit(picture, size, method=Image.Resampling.BILINEAR)
    return picture.resize(size, Image.Resampling.BILINEAR)


def _unreadable(what: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return InputError(f"huggingface: {what} cannot be read as a picture: {reason}")


@functools.cache
def _decoders() -> ThreadPoolExecutor:
    count = min(16, os.cpu_count() or 1)
    return ThreadPoolExecutor(count, thread_name_prefix="backdoorkit-decode")
