"""A network whose features are known: looking into it, and training its last layer."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional

from backdoorkit.api import (
    collect_features,
    find_structure,
    refuse_other_head,
    require_linear_head,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from backdoorkit.api import Context, ImageSet, Structure
    from backdoorkit_fc import CollisionOptions

__all__ = ["Extractor", "train_head"]

_ADVICE = "set victim = 'from-scratch'"


class Extractor:
    """φ: the penultimate features of a model, which is neither trained nor changed."""

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        self.model = model
        self.structure = structure

    @classmethod
    def of(cls, model: nn.Module, data: ImageSet) -> Extractor:
        """Of a copy of ``model``, in eval mode."""
        frozen = copy.deepcopy(model).eval().requires_grad_(False)
        structure = find_structure(frozen, data.shape, data.num_classes)
        structure.require_head("feature collision")
        return cls(frozen, structure)

    def __call__(self, images: Tensor) -> Tensor:
        """N x d."""
        return self.structure.features_and_logits(self.model, images)[0]

    def all_of(self, data: ImageSet, context: Context) -> Tensor:
        """Features of a whole set, on the CPU."""
        return collect_features(self.model, self.structure, data, context)[0]


def train_head(
    model: nn.Module, data: ImageSet, config: CollisionOptions, batch_size: int, context: Context
) -> None:
    """Train the last layer of ``model`` on ``data`` with Adam, and leave all others as they are.

    The features do not change, so they are computed once, in eval mode and without augmentation.

    Raises
    ------
    StructureError
        where the last layer is not linear, or does not make the logits.

    """
    structure = find_structure(model, data.shape, data.num_classes)
    name = require_linear_head(structure, "feature collision", _ADVICE)
    head = cast("nn.Linear", model.get_submodule(name))
    features, logits = collect_features(model, structure, data, context)
    refuse_other_head("feature collision", features, logits, head, _ADVICE)
    features, labels = features.to(context.device), data.labels.to(context.device)
    layer = copy.deepcopy(head).requires_grad_()
    optimizer = torch.optim.Adam(layer.parameters(), lr=config.head_learning_rate)
    generator = context.generator("shuffling for the last layer")
    with torch.autocast(context.device.type, enabled=False):
        for _ in context.track(range(config.head_epochs), "training the last layer"):
            order = torch.randperm(len(data), generator=generator).to(context.device)
            for rows in torch.split(order, batch_size):
                optimizer.zero_grad()
                loss = functional.cross_entropy(layer(features[rows]), labels[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                context.count(len(rows), 1)
    head.load_state_dict(layer.state_dict())
