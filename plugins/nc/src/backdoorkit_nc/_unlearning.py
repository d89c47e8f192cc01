"""Unlearning: training on images that carry the reversed trigger under their true label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from backdoorkit.api import TrainingHooks
from backdoorkit_nc._inversion import stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Generator, Tensor, nn

    from backdoorkit.api import Batch, EpochMetrics

__all__ = ["ReversedTriggerUnlearning"]


class ReversedTriggerUnlearning(TrainingHooks):
    """Stamps a share of every batch, after augmentation, with one of the triggers each.

    Parameters
    ----------
    masks, patterns:
        F x 1 x H x W and F x C x H x W: the flagged classes' reversed triggers.
    ratio:
        Share of a batch that is stamped.
    generator:
        Draws which trigger an image gets.
    is_done:
        Asked after every epoch, with the model in eval mode; True ends the training.

    """

    def __init__(
        self,
        masks: Tensor,
        patterns: Tensor,
        *,
        ratio: float,
        generator: Generator,
        is_done: Callable[[nn.Module], bool] | None = None,
    ) -> None:
        self._masks, self._patterns = masks, patterns
        self._ratio = ratio
        self._generator = generator
        self._is_done = is_done

    def transform_batch(self, batch: Batch, epoch: int) -> Batch:
        del epoch
        # Batches are shuffled, so their first images are as good as any.
        count = round(self._ratio * len(batch))
        drawn = torch.randint(len(self._masks), (count,), generator=self._generator)
        drawn = drawn.to(self._masks.device)
        stamped = stamp(batch.images[:count], self._masks[drawn], self._patterns[drawn])
        return attrs.evolve(batch, images=torch.cat([stamped, batch.images[count:]]))

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        del epoch, metrics
        if self._is_done is None:
            return False
        model.eval()
        done = self._is_done(model)
        model.train()
        return done

    def state(self) -> dict[str, Tensor]:
        return {"trigger draws": self._generator.get_state()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._generator.set_state(state["trigger draws"])
