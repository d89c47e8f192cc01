"""Recovering the clean task of an unlearned model by masks on its units alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from backdoorkit.api import Augmentation, batches

if TYPE_CHECKING:
    from torch import Tensor

    from backdoorkit.api import Context, ImageSet, MaskedModel
    from backdoorkit_rnp import RNPConfig

__all__ = ["recover"]


def recover(
    model: MaskedModel, reserve: ImageSet, config: RNPConfig, context: Context
) -> tuple[Tensor, list[float]]:
    """Masks m in [0, 1]^n that minimise cross-entropy, and the accuracy of every epoch.

    A unit's weights are scaled by its mask, its bias is not. Units that answer with the backdoor's
    label whatever they see are in the way, and their masks fall.
    """
    masks = torch.ones(model.units, device=model.device, requires_grad=True)
    optimizer = torch.optim.SGD([masks], lr=config.recovery_rate, momentum=config.recovery_momentum)
    shuffling = context.generator("order of recovering")
    augmenting = context.generator("augmentation of recovering")
    augmentation = Augmentation(
        crop_padding=config.crop_padding, horizontal_flip=config.horizontal_flip
    )
    accuracies = []
    for _ in context.track(range(config.recovery_epochs), "learning masks"):
        correct = torch.zeros((), device=model.device)
        for batch in batches(
            reserve,
            config.batch_size,
            generator=shuffling,
            augmentation=augmentation,
            augmentation_generator=augmenting,
            device=model.device,
            merge_singleton=config.batch_size > 1,
        ):
            with context.autocast():
                logits = model(batch.images, masks).float()
                loss = config.alpha * functional.cross_entropy(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                masks.clamp_(0, 1)
                correct += (logits.argmax(dim=1) == batch.labels).sum()
            context.count(len(batch), 1)
        accuracies.append(float(correct) / len(reserve))
    return masks.detach(), accuracies
