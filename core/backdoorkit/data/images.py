"""A set of labelled images: in memory as one uint8 tensor, or streamed from where they are.

Both kinds answer to the same calls with the same values. A source gives images by position; a set
adds labels, stable ids and class names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import attrs
import torch
from torch import Tensor

from backdoorkit.data._sources import (
    Extended,
    ImagesInMemory,
    ImageSource,
    Overlaid,
    Selected,
)
from backdoorkit.data.memory import fits_in_memory, fits_on_device
from backdoorkit.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ImageSet", "ImageSource", "ImagesInMemory"]

#: bytes that are fetched at once while a streamed source is read into memory
_CHUNK: Final = 64 * 2**20


@attrs.frozen(eq=False)
class ImageSet:
    """Labelled images; make one with :meth:`from_tensors` or :meth:`from_source`.

    Positions count within this set. They may be on any device, and are int64 tensors.
    """

    source: ImageSource
    #: int64, N: classes, on the source's device
    labels: Tensor
    #: int64, N: stable ids of the samples (position in the data set's split)
    ids: Tensor
    class_names: tuple[str, ...]

    def __attrs_post_init__(self) -> None:
        for name in ("labels", "ids"):
            value = getattr(self, name)
            if value.dtype != torch.int64 or value.shape != (len(self.source),):
                raise ContractError(
                    f"expected {name} as int64 of shape ({len(self.source)},), one for each "
                    f"image, got {value.dtype} of shape {tuple(value.shape)}"
                )

    @classmethod
    def from_tensors(
        cls,
        images: Tensor,
        labels: Tensor,
        *,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        ids: Tensor | None = None,
    ) -> ImageSet:
        """A set in memory.

        Parameters
        ----------
        images:
            uint8, N x C x H x W.
        labels:
            int64, N, in [0, K).
        class_names:
            Default: the numbers 0 to K - 1.
        num_classes:
            K where there are no names. Default: the largest label and one.
        ids:
            int64, N. Default: 0 to N - 1.

        Raises
        ------
        ContractError
            where types, shapes or labels are not so.

        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ContractError(
                "expected images as uint8 of shape N x C x H x W, got "
                f"{images.dtype} of shape {tuple(images.shape)}"
            )
        source = ImagesInMemory(images.contiguous())
        return _checked_set(source, labels, class_names, num_classes, ids)

    @classmethod
    def from_source(
        cls,
        source: ImageSource,
        labels: Tensor,
        *,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        ids: Tensor | None = None,
        streaming: Literal["auto", "always", "never"] = "auto",
    ) -> ImageSet:
        """A set from a source of its own: read into memory where it fits, streamed otherwise.

        ``auto`` keeps the images in memory where they take at most a quarter of what is free (or
        ``BACKDOORKIT_IMAGE_MEMORY_GIB``); the values are the same either way. The other
        parameters and errors are those of :meth:`from_tensors`.
        """
        streamed = _checked_set(source, labels, class_names, num_classes, ids)
        channels, height, width = source.shape
        size = len(source) * channels * height * width
        if streaming == "always" or (streaming == "auto" and not fits_in_memory(size)):
            return streamed
        return attrs.evolve(streamed, source=ImagesInMemory(streamed.images))

    def __len__(self) -> int:
        return len(self.source)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W of every image."""
        return self.source.shape

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        """Where labels are, and images when fetched."""
        return self.source.device

    @property
    def is_streamed(self) -> bool:
        """Whether images are read anew for every fetch."""
        return not isinstance(self.source, ImagesInMemory)

    @property
    def images(self) -> Tensor:
        """uint8, N x C x H x W: all images. Not copied in memory; a streamed set is read whole."""
        if isinstance(self.source, ImagesInMemory):
            return self.source.images
        everything = torch.arange(len(self), device=self.device)
        images = torch.empty((len(self), *self.shape), dtype=torch.uint8, device=self.device)
        channels, height, width = self.shape
        chunk = max(1, _CHUNK // (channels * height * width))
        for positions, rows in zip(
            torch.split(everything, chunk), torch.split(images, chunk), strict=True
        ):
            rows.copy_(self.source.fetch(positions))
        return images

    def fetch(self, positions: Tensor) -> Tensor:
        """uint8, n x C x H x W: the images at ``positions``."""
        return self.source.fetch(positions.to(self.device))

    def subset(self, positions: Tensor) -> ImageSet:
        """The samples at ``positions``, in that order; their ids stay."""
        positions = positions.to(self.device)
        source: ImageSource
        if isinstance(self.source, ImagesInMemory):
            source = ImagesInMemory(self.source.fetch(positions))
        elif isinstance(self.source, Selected):
            source = Selected(self.source.source, self.source.positions[positions])
        else:
            source = Selected(self.source, positions)
        return ImageSet(source, self.labels[positions], self.ids[positions], self.class_names)

    def replaced(self, positions: Tensor, images: Tensor, labels: Tensor) -> ImageSet:
        """A copy in which the samples at ``positions`` have other images and labels.

        Parameters
        ----------
        positions:
            int64, n, each at most once.
        images:
            uint8, n x C x H x W.
        labels:
            int64, n, in [0, K).

        """
        self._check_new(images, labels, len(positions))
        positions, images = positions.to(self.device), images.to(self.device)
        changed = self.labels.clone()
        changed[positions] = labels.to(self.device)
        return attrs.evolve(self, source=self._overlaid(positions, images), labels=changed)

    def extended(self, images: Tensor, labels: Tensor, ids: Tensor) -> ImageSet:
        """A copy with more samples after its own.

        Parameters
        ----------
        images:
            uint8, n x C x H x W.
        labels:
            int64, n, in [0, K).
        ids:
            int64, n: of copies, those of their originals.

        """
        self._check_new(images, labels, len(ids))
        images = images.to(self.device).contiguous()
        source: ImageSource
        if isinstance(self.source, ImagesInMemory):
            source = ImagesInMemory(torch.cat([self.source.images, images]))
        else:
            source = Extended(self.source, images)
        labels = torch.cat([self.labels, labels.to(self.device)])
        return ImageSet(
            source, labels, torch.cat([self.ids, ids.to(self.device)]), self.class_names
        )

    def to(self, device: torch.device | str) -> ImageSet:
        """The set with its images on ``device``, where they can be there as a whole.

        A streamed set, and one that would take more than a quarter of an accelerator's free
        memory, stays where it is: :func:`backdoorkit.data.batches.batches` moves every batch.
        """
        device = torch.device(device)
        if not isinstance(self.source, ImagesInMemory) or _is_same(device, self.device):
            return self
        images = self.source.images
        if not fits_on_device(images.nbytes, device):
            return self
        return ImageSet(
            ImagesInMemory(images.to(device)),
            self.labels.to(device),
            self.ids.to(device),
            self.class_names,
        )

    def _check_new(self, images: Tensor, labels: Tensor, count: int) -> None:
        if images.dtype != torch.uint8 or images.shape != (count, *self.shape):
            raise ContractError(
                f"expected replacements as uint8 of shape {(count, *self.shape)}, got "
                f"{images.dtype} of shape {tuple(images.shape)}"
            )
        _check_labels(labels, count, self.num_classes)

    def _overlaid(self, positions: Tensor, images: Tensor) -> ImageSource:
        if isinstance(self.source, ImagesInMemory):
            return ImagesInMemory(self.source.images.index_copy(0, positions, images))
        rows = torch.full((len(self),), -1, device=self.device)
        rows[positions] = torch.arange(len(positions), device=self.device)
        if bool((rows >= 0).all()):
            return ImagesInMemory(images.index_select(0, rows))
        return Overlaid(self.source, images.contiguous(), rows)


def _checked_set(
    source: ImageSource,
    labels: Tensor,
    class_names: Sequence[str] | None,
    num_classes: int | None,
    ids: Tensor | None,
) -> ImageSet:
    if class_names is None:
        largest = int(labels.max()) if len(labels) else -1
        class_names = [str(i) for i in range(largest + 1 if num_classes is None else num_classes)]
    elif num_classes is not None and num_classes != len(class_names):
        raise ContractError(
            f"expected one name for each of {num_classes} classes, got {len(class_names)} names"
        )
    _check_labels(labels, len(source), len(class_names))
    if ids is None:
        ids = torch.arange(len(source))
    device = source.device
    return ImageSet(source, labels.to(device), ids.to(device), tuple(class_names))


def _check_labels(labels: Tensor, count: int, num_classes: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ContractError(
            f"expected labels as int64 of shape ({count},), one for each image, got "
            f"{labels.dtype} of shape {tuple(labels.shape)}"
        )
    if count == 0:
        return
    lowest, largest = (int(value) for value in labels.aminmax())
    if lowest < 0 or largest >= num_classes:
        raise ContractError(
            f"expected labels from 0 to {num_classes - 1}, got labels from {lowest} to {largest}"
        )


def _is_same(wanted: torch.device, actual: torch.device) -> bool:
    """Whether ``wanted``, which may leave the index out, means ``actual``."""
    return wanted.type == actual.type and wanted.index in (None, actual.index)
