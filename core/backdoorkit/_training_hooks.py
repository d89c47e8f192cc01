"""The training loop's points of entry, and what it reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import attrs
from torch.nn import functional

from backdoorkit.hooks.shared_options import TrainOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from backdoorkit.data.batches import Batch

__all__ = ["CheckpointSlot", "EpochMetrics", "TrainingHooks", "TrainingSummary"]


@attrs.frozen
class EpochMetrics:
    """What one epoch measured while it trained (train mode, weights changing underneath)."""

    #: mean over the epoch's images of what :meth:`TrainingHooks.backward` returned
    loss: float
    #: share of images classified as their (possibly transformed) label, in [0, 1]
    accuracy: float
    #: learning rate of the epoch's last step
    learning_rate: float


@attrs.frozen
class TrainingSummary:
    """What :func:`backdoorkit.training.fit` did, including epochs before it was resumed."""

    epochs_run: int = 0
    #: whether a hook ended the training before the last epoch
    stopped_early: bool = False
    history: tuple[EpochMetrics, ...] = ()
    #: images that a loss was computed for; an image seen twice in a step counts twice
    samples_seen: int = 0
    #: optimizer steps
    gradient_steps: int = 0


class TrainingHooks:
    """Where a method enters the training loop; override what is needed.

    Epochs count from 0. Hooks that keep state across epochs (a queue, a generator of random
    numbers) override :meth:`state` and :meth:`load_state`, or a resumed run will differ.
    """

    #: options of the running :func:`backdoorkit.training.fit`, set by it
    options: TrainOptions = TrainOptions()
    #: the model that it trains, set by it: for batches that are made against the model
    model: nn.Module
    #: whether :meth:`after_epoch` is to end the training long before its last epoch, so that the
    #: number of epochs says nothing of the time left
    ends_early: bool = False

    def before_augmentation(self, batch: Batch, epoch: int) -> Batch:
        """The batch to augment instead of ``batch``; images as stored, in [0, 1]."""
        del epoch
        return batch

    def transform_batch(self, batch: Batch, epoch: int) -> Batch:
        """The batch to train on instead of ``batch``; after augmentation, images in [0, 1].

        Gradients flow through the returned images: detach what is not to be trained.
        """
        del epoch
        return batch

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        """Scalar loss of ``logits`` (float32, N x K); called under the loop's autocast."""
        del epoch
        smoothing = self.options.label_smoothing
        return functional.cross_entropy(logits, batch.labels, label_smoothing=smoothing)

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        """Leave the gradients in ``parameter.grad`` and return the loss.

        ``compute_loss()`` runs :meth:`loss` on a fresh forward pass with the current weights;
        methods that need two gradients call it twice.
        """
        del model, batch
        loss = compute_loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def after_step(self, model: nn.Module) -> None:
        """Project or mask the weights after an optimizer step; called without gradients."""

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        """Look at the model (in train mode) after an epoch; True ends the training."""
        del model, epoch, metrics
        return False

    def state(self) -> dict[str, Tensor]:
        """What these hooks remember between epochs, for a resumed run."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`state` returned."""
        del state


class CheckpointSlot(Protocol):
    """One place where an unfinished training is kept; how often it really writes is its choice."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and JSON-ready facts of the last :meth:`save`, or None."""

    def save(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Keep both: write or copy them now, since training goes on in the same tensors."""

    def clear(self) -> None:
        """Forget what was kept."""
