"""Opening data sets by name, and reading pictures from files as they are needed."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from backdoorkit.data.images import ImageSet
from backdoorkit.errors import ContractError, InputError
from backdoorkit.hooks.info import Kind
from backdoorkit.hooks.registry import resolve_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from backdoorkit.contracts import Dataset
    from backdoorkit.hooks.registry import Registry

__all__ = ["PictureForm", "StreamedFiles", "load_split", "picture_modes", "picture_sizes"]

#: what Pillow may try; its other decoders are old, rare, or run programs
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: pictures larger than this are refused before they are decoded
_MOST_PIXELS: Final = 64_000_000
#: pictures that one thread reads at a time
_BLOCK: Final = 8
_MODES: Final = {1: "L", 3: "RGB"}


def load_split(
    registry: Registry, name: str, options: Mapping[str, Any], split: str, cache: Path
) -> ImageSet:
    """The images of ``split`` (``"train"`` or ``"test"``) of the data set called ``name``.

    Parameters
    ----------
    options:
        Plain values of the data set's options, and ``preset``.
    cache:
        Folder for downloads.

    Raises
    ------
    InputError
        where there is no such data set or split, options are wrong, or the images are missing.
    ContractError
        where a plugin's data set gives something else than images.

    """
    if split not in ("train", "test"):
        raise InputError(f"a data set has the splits 'train' and 'test', not {split!r}")
    method = registry.find(name, Kind.DATASET)
    dataset: Dataset[Any] = registry.create(method, resolve_config(method, options))
    loaded = dataset.load(split, cache)
    if not isinstance(loaded, ImageSet):
        raise ContractError(
            f"expected data set {name!r} to give an ImageSet, got {type(loaded).__name__}"
        )
    if len(loaded) == 0:
        raise InputError(f"the {split} split of {name!r} holds no images")
    return loaded


@attrs.frozen
class PictureForm:
    """The one form that all pictures of a set are brought to."""

    #: 1 (grey) or 3 (RGB)
    channels: int
    height: int
    width: int
    #: how a picture of another shape gets this size; None refuses it instead
    fit: Literal["crop", "stretch"] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def read(self, path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """One picture: uint8, H x W x C.

        Raises :class:`InputError` naming the file where it cannot be used.
        """
        try:
            with Image.open(path, formats=_FORMATS) as picture:
                _check_picture(picture, path)
                converted = self._sized(picture.convert(_MODES[self.channels]), path)
                return np.asarray(converted).reshape(self.height, self.width, self.channels)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path} cannot be read as a picture: {_one_line(error)}") from error

    def _sized(self, picture: Image.Image, path: Path) -> Image.Image:
        size = (self.width, self.height)
        if picture.size == size:
            return picture
        if self.fit is None:
            raise InputError(
                f"{path} is {_by(picture.size)} pixels and the first picture {_by(size)}; "
                "set size to bring all pictures to one size"
            )
        if self.fit == "crop":
            return ImageOps.fit(picture, size, method=Image.Resampling.BILINEAR)
        return picture.resize(size, Image.Resampling.BILINEAR)


@attrs.frozen(eq=False)
class StreamedFiles:
    """A source of images that reads picture files when they are asked for, several at once."""

    paths: Sequence[Path]
    form: PictureForm

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.form.shape

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, positions: Tensor) -> Tensor:
        channels, height, width = self.form.shape
        wanted = [self.paths[position] for position in positions.tolist()]
        pixels = np.empty((len(wanted), height, width, channels), dtype=np.uint8)

        def read(start: int) -> None:
            for row in range(start, min(start + _BLOCK, len(wanted))):
                pixels[row] = self.form.read(wanted[row])

        # Pillow lets go of the interpreter's lock while it decodes. Draining the results raises
        # the first error.
        for _ in _readers().map(read, range(0, len(wanted), _BLOCK)):
            pass
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def picture_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Width and height of each picture, from its header alone."""
    return list(_readers().map(_picture_size, paths))


def picture_modes(paths: Sequence[Path]) -> list[str]:
    """Pillow's mode of each picture (``L`` is grey, ``RGB`` coloured), from its header alone."""
    return [mode for _, mode in _readers().map(_picture_facts, paths)]


def _picture_size(path: Path) -> tuple[int, int]:
    return _picture_facts(path)[0]


def _picture_facts(path: Path) -> tuple[tuple[int, int], str]:
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            return picture.size, picture.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture: {_one_line(error)}") from error


def _check_picture(picture: Image.Image, path: Path) -> None:
    if picture.width * picture.height > _MOST_PIXELS:
        raise InputError(f"{path} has {_by(picture.size)} pixels, which is more than is read")
    if picture.mode.startswith(("I", "F")):
        raise InputError(
            f"{path} has more than 8 bits for a pixel (mode {picture.mode}); convert it to 8 bits"
        )


@functools.cache
def _readers() -> ThreadPoolExecutor:
    count = min(16, os.cpu_count() or 1)
    return ThreadPoolExecutor(count, thread_name_prefix="backdoorkit-read")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
