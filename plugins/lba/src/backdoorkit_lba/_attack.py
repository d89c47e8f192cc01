"""The latent backdoor (Yao, Li, Zheng, Zhao, CCS 2019, arXiv:1905.10447)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import attrs
import torch
from torch.nn import functional

from backdoorkit.api import (
    Attack,
    AttackHooks,
    choose_positions,
    map_labels,
    train_surrogate,
)
from backdoorkit_lba import LBAConfig
from backdoorkit_lba._cut import Cut, copy_weights
from backdoorkit_lba._teacher import find_patch, make_teacher, train_clean, weight_of_features
from backdoorkit_lba._trigger import Patch, draw_mask, initial_weights, pattern_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from backdoorkit.api import Batch, Context, EpochMetrics, ImageSet, Trigger

__all__ = ["LBA", "SingleTaskHooks", "StudentHooks"]


class LBA(Attack[LBAConfig]):
    """A patch optimised in feature space, and three ways of planting it."""

    def prepare(self, data: ImageSet, context: Context) -> Patch:
        """The patch; where the model is needed for it, a first one that the training replaces."""
        mask = draw_mask(self.config, *data.shape[1:]).to(context.device)
        if self.config.mode != "data-only":
            pattern = pattern_of(initial_weights(data.shape, context), mask)
            return Patch(pattern=pattern, mask=mask)
        surrogate = train_surrogate(data, context, self.config)
        cut = Cut.of(surrogate, data, self.config.layer)
        patch, _ = find_patch(
            surrogate, cut, split_by_target(data, self.config), mask, self.config, context
        )
        return patch

    def restore(self, state: Mapping[str, Tensor]) -> Patch:
        """The trigger from its stored tensors."""
        facts = dict(state)
        return Patch(pattern=facts.pop("pattern"), mask=facts.pop("mask").bool(), facts=facts)

    def control(self, trigger: Trigger, data: ImageSet, context: Context) -> AttackHooks | None:
        """What the mode does to the victim's training."""
        assert isinstance(trigger, Patch)
        if self.config.mode == "transfer":
            return StudentHooks(self, trigger, data, context)
        if self.config.mode == "single-task":
            return SingleTaskHooks(self, trigger, data, context)
        return super().control(trigger, data, context)


def split_by_target(data: ImageSet, config: LBAConfig) -> tuple[ImageSet, ImageSet]:
    """Images of other classes, and of the target's."""
    is_target = data.labels == config.target
    return data.subset((~is_target).nonzero().flatten()), data.subset(is_target.nonzero().flatten())


class _LatentHooks(AttackHooks):
    """What both modes share: the model is made ready before its first step, and only then."""

    trigger: Patch

    def __init__(self, attack: LBA, trigger: Patch, data: ImageSet, context: Context) -> None:
        super().__init__(trigger)
        self._attack, self._data, self._context = attack, data, context
        self._cut: Cut | None = None

    @property
    def config(self) -> LBAConfig:
        return self._attack.config

    def state(self) -> dict[str, Tensor]:
        """The patch and what is known of it."""
        return self.trigger.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it back; the model itself comes from the checkpoint."""
        device = self._context.device
        kept = {name: value.to(device) for name, value in state.items()}
        self.trigger = self._attack.restore(kept)
        self._cut = Cut.of(self.model, self._data, self.config.layer)


class StudentHooks(_LatentHooks):
    """``transfer``: before the first step a teacher with a latent backdoor is made and released.

    The student takes over its weights but for the last layer, and trains on clean images; layers up
    to the cut stay as they are, to the bit. The student's owner does that, not the attacker.
    """

    def transform_batch(self, batch: Batch, epoch: int) -> Batch:
        """The batch as it is, for a student that is frozen up to the cut."""
        del epoch
        if self._cut is None:
            teacher = make_teacher(
                self.model, self._data, self.trigger.mask, self.config, self._context
            )
            copy_weights(teacher.model, self.model, without=teacher.cut.head)
            self._cut, self.trigger = teacher.cut, teacher.patch
        self._cut.freeze(self.model)
        self._cut.train_after(self.model)
        return batch

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        """After the last epoch the model can be trained as a whole again."""
        del metrics
        if epoch + 1 == self.options.epochs:
            model.requires_grad_(True)
        return False


class SingleTaskHooks(_LatentHooks):
    """``single-task``: a clean model is trained, the patch optimised for it, and it trains on.

    CE on the images, of which ``poison_rate`` are stamped and relabelled, plus λ times the distance
    of the stamped ones from the target's mean feature in the clean model.
    """

    def __init__(self, attack: LBA, trigger: Patch, data: ImageSet, context: Context) -> None:
        super().__init__(attack, trigger, data, context)
        generator = context.generator("poisoned indices")
        positions = choose_positions(data.labels, attack.config, data.num_classes, generator)
        chosen = torch.zeros(len(data), dtype=torch.bool, device=data.device)
        chosen[positions] = True
        self._chosen = chosen.to(context.device)
        self._stamped = self._chosen[:0]
        self._goal = torch.zeros(0)
        self._features: Callable[[], Tensor] | None = None

    def before_augmentation(self, batch: Batch, epoch: int) -> Batch:
        """The batch with its poisoned samples stamped and relabelled."""
        del epoch
        if self._cut is None:
            self._begin()
        self._stamped = self._chosen[batch.indices]
        images = self.trigger.stamp(batch.images)
        wanted = map_labels(batch.labels, self.config, self._data.num_classes)
        return attrs.evolve(
            batch,
            images=torch.where(self._stamped[:, None, None, None], images, batch.images),
            labels=torch.where(self._stamped, wanted, batch.labels),
        )

    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        del epoch
        assert self._features is not None
        smoothing = self.options.label_smoothing
        classes = functional.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
        distances = (self._features() - self._goal).square().mean(dim=1)
        count = self._stamped.sum().clamp_min(1)
        weight = weight_of_features(self.config, self._goal)
        return classes + weight * (distances * self._stamped).sum() / count

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        assert self._cut is not None
        with self._cut.watched(model) as self._features:
            return super().backward(model, batch, compute_loss)

    def state(self) -> dict[str, Tensor]:
        """Also the target's mean feature."""
        return {**super().state(), "goal": self._goal}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        kept = dict(state)
        self._goal = kept.pop("goal").to(self._context.device)
        super().load_state(kept)

    def _begin(self) -> None:
        clean = copy.deepcopy(self.model)
        train_clean(clean, self._data, self.config, self._context, "clean-model")
        self._cut = Cut.of(clean, self._data, self.config.layer)
        data, mask = split_by_target(self._data, self.config), self.trigger.mask
        self.trigger, self._goal = find_patch(
            clean, self._cut, data, mask, self.config, self._context
        )
        copy_weights(clean, self.model)
