"""Images by position: in memory, and selections, replacements and extensions of other sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Extended", "ImageSource", "ImagesInMemory", "Overlaid", "Selected"]


class ImageSource(Protocol):
    """Images by position, as uint8. A set that is read from files implements these four."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""

    @property
    def device(self) -> torch.device:
        """Where fetched images are."""

    def __len__(self) -> int:
        """Number of images N."""

    def fetch(self, positions: Tensor) -> Tensor:
        """uint8, n x C x H x W: the images at ``positions`` (int64, n, on the source's device).

        May be called from another thread, and with no positions at all.
        """


@attrs.frozen(eq=False)
class ImagesInMemory:
    """All images in one tensor, uint8, N x C x H x W."""

    images: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, positions: Tensor) -> Tensor:
        return self.images.index_select(0, positions)


@attrs.frozen(eq=False)
class Selected:
    """Some images of another source, by position, possibly repeated."""

    source: ImageSource
    positions: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    @property
    def device(self) -> torch.device:
        return self.source.device

    def __len__(self) -> int:
        return len(self.positions)

    def fetch(self, positions: Tensor) -> Tensor:
        return self.source.fetch(self.positions[positions])


@attrs.frozen(eq=False)
class Overlaid:
    """Another source with some images replaced; the replacements are in memory."""

    source: ImageSource
    #: uint8, M x C x H x W
    images: Tensor
    #: int64, N: row of ``images``, or -1 where the source's own image shows
    rows: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    @property
    def device(self) -> torch.device:
        return self.source.device

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, positions: Tensor) -> Tensor:
        rows = self.rows[positions]
        fetched = self.images.new_empty((len(positions), *self.shape))
        own = (rows < 0).nonzero().flatten()
        other = (rows >= 0).nonzero().flatten()
        fetched[own] = self.source.fetch(positions[own])
        fetched[other] = self.images[rows[other]]
        return fetched


@attrs.frozen(eq=False)
class Extended:
    """Another source with more images after its own; those are in memory."""

    source: ImageSource
    #: uint8, M x C x H x W
    images: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    @property
    def device(self) -> torch.device:
        return self.source.device

    def __len__(self) -> int:
        return len(self.source) + len(self.images)

    def fetch(self, positions: Tensor) -> Tensor:
        count = len(self.source)
        fetched = self.images.new_empty((len(positions), *self.shape))
        own = (positions < count).nonzero().flatten()
        other = (positions >= count).nonzero().flatten()
        fetched[own] = self.source.fetch(positions[own])
        fetched[other] = self.images[positions[other] - count]
        return fetched
