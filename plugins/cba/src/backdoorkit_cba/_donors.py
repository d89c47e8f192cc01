"""Images by class, to mix others with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from backdoorkit.api import ImageSet

__all__ = ["Donors"]


class Donors:
    """The images of ``data``, found by class and a number in [0, 1)."""

    def __init__(self, data: ImageSet) -> None:
        self.data = data
        self._order = data.labels.argsort(stable=True)
        self._counts = torch.bincount(data.labels, minlength=data.num_classes)
        self._starts = self._counts.cumsum(0) - self._counts

    def choose(self, classes: Tensor, uniform: Tensor) -> Tensor:
        """int64, N: positions of images of ``classes`` (int64, N), each as likely as the others.

        Where a class has no image, some other one: nothing can be mixed with a class that is not
        there, and only images of A and B are attacked, of which there are some.
        """
        device = self.data.device
        classes, uniform = classes.to(device), uniform.to(device)
        places = self._starts[classes] + (uniform * self._counts[classes]).long()
        return self._order[places.clamp(max=len(self._order) - 1)]

    def fetch(self, classes: Tensor, uniform: Tensor, like: Tensor) -> Tensor:
        """Images of ``classes``, N x C x H x W, of the type and on the device of ``like``."""
        stored = self.data.fetch(self.choose(classes, uniform)).to(like.device)
        return stored.to(like.dtype) / 255 if like.is_floating_point() else stored
