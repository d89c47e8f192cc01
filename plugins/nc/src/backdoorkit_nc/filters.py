"""The detector's input filter, for those who keep a suspect model in use.

::

    from safetensors.torch import load_file
    from backdoorkit_nc.filters import screen, stored_filters

    filters = stored_filters(load_file("tensors.safetensors"))  # of the verdict in the store
    classes, rejected = screen(model, images, filters)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

__all__ = ["InputFilter", "filter_tensors", "screen", "stored_filters"]


@attrs.frozen(kw_only=True, eq=False)
class InputFilter:
    """Rejects inputs that excite the trigger's units more than almost all clean ones do."""

    #: int64: penultimate units that are watched
    units: Tensor
    #: score above which an input is rejected
    threshold: float

    def score(self, features: Tensor) -> Tensor:
        """Mean activation of the watched units (N) of penultimate features (N x d)."""
        return features[:, self.units.to(features.device)].mean(dim=1)

    def rejects(self, features: Tensor) -> Tensor:
        """Which inputs (bool, N) are taken for triggered."""
        return self.score(features) > self.threshold


def filter_tensors(filters: Mapping[int, InputFilter]) -> dict[str, Tensor]:
    """What :func:`stored_filters` reads: tensors by name."""
    import torch

    kept = {}
    for label, each in filters.items():
        kept[f"filter.{label}.units"] = each.units
        kept[f"filter.{label}.threshold"] = torch.tensor(each.threshold)
    return kept


def stored_filters(tensors: Mapping[str, Tensor]) -> dict[int, InputFilter]:
    """The filter of every flagged class, from the tensors that the detector stored.

    Empty where no class was flagged: there is then nothing to look out for.
    """
    found = (re.fullmatch(r"filter\.(\d+)\.units", name) for name in tensors)
    return {
        label: InputFilter(
            units=tensors[f"filter.{label}.units"],
            threshold=float(tensors[f"filter.{label}.threshold"]),
        )
        for label in sorted(int(match[1]) for match in found if match)
    }


def screen(
    model: nn.Module, images: Tensor, filters: Mapping[int, InputFilter]
) -> tuple[Tensor, Tensor]:
    """What ``model`` says of ``images``, and which of them to distrust.

    One forward pass in the mode that the model is in, which should be eval mode.

    Parameters
    ----------
    images:
        float32 in [0, 1], N x C x H x W, on the model's device.

    Returns
    -------
    tuple of Tensor
        Predicted classes (int64, N), also of what is rejected; and whether any filter rejects the
        image (bool, N). With several flagged classes their false alarms add up.

    """
    import torch

    from backdoorkit.api import find_structure

    shape = images.shape[1], images.shape[2], images.shape[3]
    with torch.no_grad():
        features, logits = find_structure(model, shape).features_and_logits(model, images)
    rejected = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for each in filters.values():
        rejected |= each.rejects(features.float())
    return logits.argmax(dim=1), rejected
