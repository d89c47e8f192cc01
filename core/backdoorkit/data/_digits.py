"""scikit-learn's handwritten digits: real images inside a dependency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backdoorkit.contracts import Dataset
from backdoorkit.data.images import ImageSet
from backdoorkit.data.options import DigitsOptions
from backdoorkit.data.poison import quantize
from backdoorkit.data.splits import spread_positions

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Digits"]

_TEST_SIZE: Final = 400
#: grey levels of the original: 0 to 16
_LEVELS: Final = 16


class Digits(Dataset[DigitsOptions]):
    """1,797 digits of 43 writers (Alpaydin and Kaynak, UCI, 1998), 1,397 to train on, 400 to test.

    The test images are spread evenly over the file, class by class, always the same ones.
    """

    def load(self, split: str, cache: Path) -> ImageSet:
        """Images of ``split``; needs no files."""
        from sklearn.datasets import load_digits

        del cache
        pixels, labels = load_digits(return_X_y=True)
        numbers = torch.from_numpy(labels.astype(np.int64))
        grey = torch.from_numpy(pixels.astype(np.float32)).view(-1, 1, 8, 8) / _LEVELS
        is_test = torch.zeros(len(numbers), dtype=torch.bool)
        is_test[spread_positions(numbers, _TEST_SIZE)] = True
        wanted = is_test if split == "test" else ~is_test
        return ImageSet.from_tensors(self._formed(grey[wanted]), numbers[wanted], num_classes=10)

    def fingerprint(self) -> str:
        """The images are part of scikit-learn and have never changed."""
        return "optical-digits-1797"

    def _formed(self, grey: Tensor) -> Tensor:
        size = self.config.size
        if size != grey.shape[-1]:
            # Powers of two: every weight is exact, so the result is the same on every machine.
            grey = functional.interpolate(grey, (size, size), mode="bilinear", align_corners=False)
        return quantize(grey).expand(-1, self.config.channels, -1, -1)
