"""What teacher and student add to plain fine-tuning: cutout, and the attention loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs
import torch

from backdoorkit.api import TrainingHooks
from backdoorkit_nad._attention import attention, attention_distance

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor, nn

    from backdoorkit.api import Batch, EpochMetrics, Structure

__all__ = ["AttentionDistillation", "Cutout", "cut_out"]


def cut_out(images: Tensor, side: int, generator: Generator) -> Tensor:
    """Copies of ``images`` (N x C x H x W), each with a black square of ``side`` pixels.

    Its centre is uniform over the image; what lies beyond the border is cut off. ``generator`` is
    one of the CPU.
    """
    count, _, height, width = images.shape
    inside = []
    for length in (height, width):
        first = torch.randint(length, (count, 1), generator=generator) - side // 2
        offset = torch.arange(length) - first
        inside.append((offset >= 0) & (offset < side))
    rows, columns = inside
    hole = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device, non_blocking=True)
    return images.masked_fill(hole, 0)


class Cutout(TrainingHooks):
    """Fine-tuning with a black square of ``side`` pixels in every image; 0 is none."""

    def __init__(self, side: int, generator: Generator) -> None:
        self._side = side
        self._generator = generator

    def transform_batch(self, batch: Batch, epoch: int) -> Batch:
        if self._side == 0:
            return batch
        return attrs.evolve(batch, images=cut_out(batch.images, self._side, self._generator))


class AttentionDistillation(Cutout):
    """Cross-entropy + Σ_l β_l · distance between student's and teacher's attention at stage l.

    ``maps`` are the student's feature maps in its latest forward pass, as
    :meth:`Structure.feature_maps` keeps them up to date: each batch goes through the student once,
    so that batch norm sees it once.
    """

    def __init__(
        self,
        maps: Mapping[str, Tensor],
        teacher: nn.Module,
        structure: Structure,
        beta: Mapping[str, float],
        *,
        distance: Literal["squared", "norm", "mean"],
        power: float,
        cutout: int,
        generator: Generator,
    ) -> None:
        super().__init__(cutout, generator)
        self._maps = maps
        self._teacher = teacher.eval().requires_grad_(False)
        self._structure = structure
        self._beta = beta
        self._distance = distance
        self._power = power
        self._seen: list[Tensor] = []
        #: mean distance of each stage in the last epoch
        self.distances: dict[str, float] = {}

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        loss = super().loss(logits, batch, epoch)
        wanted = self._teacher_maps(batch.images)
        distances = []
        for name, beta in self._beta.items():
            ours, theirs = (attention(maps[name], self._power) for maps in (self._maps, wanted))
            distances.append(attention_distance(ours, theirs, self._distance))
            loss = loss + beta * distances[-1]
        self._seen.append(torch.stack(distances).detach())
        return loss

    def _teacher_maps(self, images: Tensor) -> Mapping[str, Tensor]:
        names = list(self._beta)
        with torch.no_grad(), self._structure.feature_maps(self._teacher, names) as maps:
            self._teacher(images.contiguous(memory_format=torch.channels_last))
        return maps

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        means = torch.stack(self._seen).mean(dim=0).tolist()
        self.distances = dict(zip(self._beta, means, strict=True))
        self._seen.clear()
        return super().after_epoch(model, epoch, metrics)
