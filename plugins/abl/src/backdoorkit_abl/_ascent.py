"""Stage 2 of ABL itself: global gradient ascent on the isolated samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional

from backdoorkit.api import Augmentation, Batch, TrainingHooks
from backdoorkit_abl._isolation import sample_losses

if TYPE_CHECKING:
    from collections.abc import Callable

    from backdoorkit.api import Context, EpochMetrics, ImageSet
    from backdoorkit_abl import ABLConfig
    from backdoorkit_abl._isolation import Isolation

__all__ = ["Ascent", "JointAscent", "ascend", "capped", "global_gradient_ascent", "loss_limit"]


def loss_limit(loss_cap: float, num_classes: int) -> float:
    """ℓ_max = cap · ln K, or infinity without a cap."""
    return loss_cap * math.log(num_classes) if loss_cap else math.inf


def capped(losses: Tensor, limit: float) -> Tensor:
    """min(ℓ, ℓ_max): −ℓ has no lower bound, and without one of ours the logits grow without end."""
    return losses.clamp_max(limit)


def global_gradient_ascent(rest: Tensor, isolated: Tensor, limit: float) -> Tensor:
    """E over D̂_c of ℓ less E over D̂_b of min(ℓ, ℓ_max), from the losses of both; a scalar."""
    return rest.mean() - capped(isolated, limit).mean()


class Ascent(TrainingHooks):
    """Sequential form: raise the loss on the isolated samples alone, for a few small steps.

    It ends where the mean loss reaches ``stop_loss``, or every sample the cap.
    """

    def __init__(
        self, model: nn.Module, isolated: ImageSet, config: ABLConfig, context: Context
    ) -> None:
        self._isolated = isolated
        self._stop_loss = math.inf if config.stop_loss is None else config.stop_loss
        self._limit = loss_limit(config.loss_cap, isolated.num_classes)
        self._context = context
        self._norms = [
            module
            for module in model.modules()
            if config.freeze_norm_statistics and isinstance(module, nn.modules.batchnorm._NormBase)
        ]
        #: mean loss of the isolated samples before the first epoch and after each
        self.trace: list[float] = []
        self.stop_reason = "epochs"
        self._look(model)

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        # The loop puts the whole model into train mode at the start of every epoch.
        for norm in self._norms:
            norm.eval()
        return super().backward(model, batch, compute_loss)

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        losses = functional.cross_entropy(logits, batch.labels, reduction="none")
        return -capped(losses, self._limit).mean()

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        least = self._look(model)
        if least >= self._limit:
            self.stop_reason = "cap"
        elif self.trace[-1] >= self._stop_loss:
            self.stop_reason = "stop-loss"
        return self.stop_reason != "epochs"

    def _look(self, model: nn.Module) -> float:
        losses = sample_losses(model, self._isolated, self._context)
        self.trace.append(float(losses.mean()))
        return float(losses.min())


def ascend(
    model: nn.Module, isolated: ImageSet, config: ABLConfig, context: Context
) -> dict[str, Any]:
    """Ascend on the isolated samples in place; what there is to tell of it."""
    augmented = config.unlearning_augmentation
    options = attrs.evolve(
        config,
        epochs=config.unlearning_epochs,
        learning_rate=config.unlearning_learning_rate,
        schedule="constant",
        batch_size=config.unlearning_batch_size,
        crop_padding=config.crop_padding if augmented else 0,
        horizontal_flip=config.horizontal_flip and augmented,
    )
    ascent = Ascent(model, isolated, config, context)
    summary = context.fit(model, isolated, options, hooks=ascent)
    return {
        "unlearning_epochs": summary.epochs_run,
        "unlearning_losses": ascent.trace,
        "unlearning_stop": ascent.stop_reason,
    }


class JointAscent(TrainingHooks):
    """Joint form: every step descends on a batch of D̂_c and ascends on a batch of D̂_b."""

    def __init__(self, isolation: Isolation, config: ABLConfig, context: Context) -> None:
        self._data = isolation.data
        self._positions = isolation.positions.cpu()
        self._size = min(config.unlearning_batch_size, len(self._positions))
        self._limit = loss_limit(config.loss_cap, isolation.data.num_classes)
        self._generator = context.generator("isolated batches")
        self._augmentation = (
            Augmentation(crop_padding=config.crop_padding, horizontal_flip=config.horizontal_flip)
            if config.unlearning_augmentation
            else Augmentation()
        )

    def transform_batch(self, batch: Batch, epoch: int) -> Batch:
        """``batch`` with isolated samples after it, which have the index −1."""
        drawn = torch.randperm(len(self._positions), generator=self._generator)[: self._size]
        positions = self._positions[drawn].to(self._data.device)
        device = batch.images.device
        images = self._data.fetch(positions).to(device).float() / 255
        labels = self._data.labels[positions].to(device)
        return Batch(
            images=torch.cat([batch.images, self._augmentation(images, self._generator)]),
            labels=torch.cat([batch.labels, labels]),
            indices=torch.cat([batch.indices, batch.indices.new_full((self._size,), -1)]),
        )

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        losses = functional.cross_entropy(logits, batch.labels, reduction="none")
        rest, isolated = losses[: -self._size], losses[-self._size :]
        return global_gradient_ascent(rest, isolated, self._limit)
