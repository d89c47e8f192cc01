"""Hooks of attacks that control the victim's training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch

from backdoorkit.data.choosing import check_options, choose_in_batch, map_labels
from backdoorkit.errors import InputError
from backdoorkit.training import TrainingHooks

if TYPE_CHECKING:
    from torch import Tensor

    from backdoorkit.contracts import Attack, Trigger
    from backdoorkit.data.batches import Batch
    from backdoorkit.data.choosing import Chosen
    from backdoorkit.data.images import ImageSet

__all__ = ["AttackHooks", "PerBatchPoisoning"]


class AttackHooks(TrainingHooks):
    """Training hooks of an attack; the victim trains on the clean images with them.

    ``trigger`` is the trigger as it is now: after the training, the one that is stored with the
    victim and planted in test images. An attack that learns its trigger trains it in the hooks.
    """

    def __init__(self, trigger: Trigger) -> None:
        self.trigger = trigger


class PerBatchPoisoning(AttackHooks):
    """In every step the first samples of the shuffled batch are poisoned, the next are covers.

    Of a batch of B images ``n = floor(poison_rate B)`` get the trigger and the attacker's label, as
    in the code of WaNet, Input-aware and DFST: 12 of 128 at a rate of 0.1. Then ``floor(cover_ratio
    n)`` become covers. With a narrower rate basis or label map, the first samples that qualify are
    taken. Images are altered as they are stored, before they are augmented; unlike in a poisoned
    training set they are not rounded to 8 bits.

    Nothing is drawn here: the shuffling decides. What covers draw follows from the epoch.
    """

    def __init__(self, attack: Attack[Any], trigger: Trigger, data: ImageSet) -> None:
        super().__init__(trigger)
        self.attack = attack
        self._ids = data.ids
        self._num_classes = data.num_classes
        check_options(data.labels, attack.config, data.num_classes)

    def before_augmentation(self, batch: Batch, epoch: int) -> Batch:
        """The batch with its poisoned samples and covers in place."""
        poisoned, covers = self.choose(batch)
        images, labels = batch.images.clone(), self.relabelled(batch, poisoned)
        ids = self._ids.to(batch.indices.device)[batch.indices]
        planted = self.attack.for_training(self.trigger)
        self._alter(images, batch, ids, poisoned, planted)
        cover = self.attack.cover(self.trigger, epoch)
        self._alter(images, batch, ids, covers, planted if cover is None else cover)
        return attrs.evolve(batch, images=images, labels=labels)

    def choose(self, batch: Batch) -> tuple[Chosen, Chosen]:
        """The rows of ``batch``, under its true labels, to be poisoned, and those for covers.

        For attacks that alter these rows in a way of their own.
        """
        options = self.attack.config
        if int(options.poison_rate * self.options.batch_size + 1e-9) == 0:
            _refuse_small_batches(options.poison_rate, self.options.batch_size)
        return choose_in_batch(batch.labels, options, self._num_classes)

    def relabelled(self, batch: Batch, poisoned: Chosen) -> Tensor:
        """int64, B: the labels, at the poisoned rows those that the attacker wants."""
        labels = batch.labels.clone()
        wanted = map_labels(batch.labels[poisoned.rows], self.attack.config, self._num_classes)
        labels[poisoned.rows] = torch.where(poisoned.valid, wanted, labels[poisoned.rows])
        return labels

    @torch.no_grad()
    def _alter(
        self, images: Tensor, batch: Batch, ids: Tensor, chosen: Chosen, trigger: Trigger
    ) -> None:
        """Write what ``trigger`` makes of the chosen rows of ``batch`` into ``images``."""
        rows = chosen.rows
        if len(rows) == 0:
            return
        with torch.autocast(images.device.type, enabled=False):
            made = trigger.apply(batch.images[rows], batch.labels[rows], ids[rows])
        images[rows] = torch.where(chosen.valid[:, None, None, None], made, images[rows])


def _refuse_small_batches(rate: float, size: int) -> None:
    if rate > 0:
        raise InputError(
            f"poison_rate {rate:g} of a batch of {size} is no image; raise the rate or the batch "
            "size, or poison with index_policy 'fixed'"
        )
