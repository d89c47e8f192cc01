"""The victim's training in mode full: new mixes in every epoch, and a contrastive loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import torch

from backdoorkit.api import AttackHooks, InputError, uniform_by_sample
from backdoorkit_cba._donors import Donors

if TYPE_CHECKING:
    from torch import Tensor

    from backdoorkit.api import Batch, ImageSet
    from backdoorkit_cba._attack import CBA, CompositeTrigger

__all__ = ["MixedTraining", "contrastive_loss"]

#: inside the root, whose slope at zero is infinite
_EPSILON: Final = 1e-9
#: draws of an epoch that are independent of each other: covers, images of A and order, mixes
_STREAMS: Final = 3


class MixedTraining(AttackHooks):
    """Every shuffled batch has same-class mixes in its first rows and gets mixes of A and B, as C.

    Nothing is drawn here: images and cuts follow from the ids of the batch's images and the epoch,
    so that they do not depend on the order of batches.
    """

    def __init__(self, attack: CBA, trigger: CompositeTrigger, data: ImageSet) -> None:
        super().__init__(trigger)
        self._config = attack.config
        self._mixing = attrs.evolve(trigger, donors=Donors(data))

    def before_augmentation(self, batch: Batch, epoch: int) -> Batch:
        """Covers in place, poisoned mixes added, all in another order."""
        config, device = self._config, batch.images.device
        self._refuse_small_batches()
        count = int(config.poison_rate * len(batch) + 1e-9)
        covers = min(len(batch), int(config.cover_ratio * count + 1e-9))
        ids = self._mixing.donors.data.ids.to(device)[batch.indices]
        streams = [_STREAMS * (epoch + 1) + number for number in range(_STREAMS)]
        # For every image: which image of A, its place in the batch, and that of its mix.
        drawn = uniform_by_sample(ids, (3,), self._mixing.key, streams[1])

        images = batch.images.clone()
        mixing = attrs.evolve(self._mixing, stream=streams[0])
        images[:covers] = mixing.mixed(images[:covers], batch.labels[:covers], ids[:covers])

        first, second = (torch.full_like(batch.labels[:count], label) for label in mixing.classes)
        mixing = attrs.evolve(self._mixing, stream=streams[2])
        rows = mixing.donors.choose(first, drawn[:count, 0])
        stored = mixing.donors.data.fetch(rows).to(device).float() / 255
        composed = mixing.mixed(stored, second, ids[:count])

        # Neighbours are compared by the contrastive loss: poison must not lie in one heap.
        order = torch.cat([drawn[:, 1], drawn[:count, 2]]).argsort()
        return attrs.evolve(
            batch,
            images=torch.cat([images, composed])[order],
            labels=torch.cat([batch.labels, batch.labels.new_full((count,), config.target)])[order],
            indices=torch.cat([batch.indices, rows.to(device)])[order],
        )

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        """Cross-entropy, and the contrastive loss among images labelled A, B or C."""
        config, loss = self._config, super().loss(logits, batch, epoch)
        if config.contrast == 0:
            return loss
        concerned = torch.zeros_like(batch.labels, dtype=torch.bool)
        for label in (*config.mixed_classes, config.target):
            concerned |= batch.labels == label
        contrast = contrastive_loss(logits.float(), batch.labels, concerned, config.margin)
        return loss + config.contrast * contrast

    def _refuse_small_batches(self) -> None:
        config, size = self._config, self.options.batch_size
        if config.poison_rate > 0 and int(config.poison_rate * size + 1e-9) == 0:
            raise InputError(
                f"poison_rate {config.poison_rate:g} of a batch of {size} is no mix; raise the "
                "rate or the batch size, or set mode 'data-only'"
            )


def contrastive_loss(logits: Tensor, labels: Tensor, concerned: Tensor, margin: float) -> Tensor:
    """Mean over pairs of neighbours: d^2 / 2 in one class, relu(margin - d)^2 / 2 in two.

    Neighbours are consecutive ones of the ``concerned`` (bool, B); d is the distance of their
    ``logits`` (B x K). Zero where there is no pair.
    """
    # Sorting in place of selecting: the number of pairs stays on the device.
    order = (~concerned).to(torch.uint8).argsort(stable=True)
    logits, labels = logits[order], labels[order]
    squared = (logits[1:] - logits[:-1]).square().sum(dim=1)
    near = (margin - (squared + _EPSILON).sqrt()).relu().square()
    losses = torch.where(labels[1:] == labels[:-1], squared, near) / 2
    pairs = concerned.sum() - 1
    is_pair = torch.arange(len(losses), device=logits.device) < pairs
    return losses.where(is_pair, 0).sum() / pairs.clamp(min=1)
