"""The filters of all flagged classes as one, for the framework to rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backdoorkit.api import InputFilter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from backdoorkit.api import Structure
    from backdoorkit_nc import filters

__all__ = ["FlaggedClassesFilter"]


class FlaggedClassesFilter(InputFilter):
    """Rejects what any filter rejects: the score is the largest excess over its threshold."""

    threshold = 0.0

    def __init__(
        self, model: nn.Module, structure: Structure, watches: Mapping[int, filters.InputFilter]
    ) -> None:
        """``model`` is in eval mode."""
        self._model, self._structure, self._watches = model, structure, watches

    def score(self, images: Tensor) -> Tensor:
        features, _ = self._structure.features_and_logits(self._model, images)
        features = features.float()
        excess = [watch.score(features) - watch.threshold for watch in self._watches.values()]
        return torch.stack(excess).amax(dim=0)
