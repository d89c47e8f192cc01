"""What both attacks share: the poisons, whose features they collide in, and the transfer."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import torch

from backdoorkit.api import (
    Attack,
    AttackHooks,
    InputError,
    PoisonedSet,
    SampleKind,
    Trigger,
    choose_positions,
    train_surrogate,
)
from backdoorkit_fc import CollisionOptions
from backdoorkit_fc._collision import collide
from backdoorkit_fc._transfer import Extractor, train_head

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from backdoorkit.api import Context, EpochMetrics, ImageSet

__all__ = ["Collision", "CollisionTrigger", "Pairs", "TransferHooks"]

C = TypeVar("C", bound=CollisionOptions)


@attrs.frozen(eq=False, kw_only=True)
class CollisionTrigger(Trigger):
    """The patch, if there is one; the attacked images, if they are chosen; the poisons, once made.

    What there is not is empty.
    """

    #: float32 in [0, 1], 1 x C x H x W, zero off the mask
    pattern: Tensor
    #: bool, 1 x 1 x H x W
    mask: Tensor
    #: int64, k: ids of the attacked test images
    ids: Tensor
    #: uint8, k x C x H x W: the attacked test images
    images: Tensor
    #: int64, n: positions of the poisons in the training set
    positions: Tensor
    #: uint8, n x C x H x W
    poisons: Tensor

    @classmethod
    def plain(cls, data: ImageSet, device: torch.device) -> CollisionTrigger:
        """No patch, nobody attacked, no poisons."""
        shape = data.shape
        none = torch.empty(0, *shape, dtype=torch.uint8, device=device)
        nobody = torch.empty(0, dtype=torch.int64, device=device)
        return cls(
            pattern=torch.zeros(1, *shape, device=device),
            mask=torch.zeros(1, 1, *shape[1:], dtype=torch.bool, device=device),
            ids=nobody,
            images=none,
            positions=nobody,
            poisons=none,
        )

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Copies of ``images`` (N x C x H x W) with the patch, where there is one."""
        del labels, indices
        if images.shape[1:] != self.pattern.shape[1:]:
            made, came = ("x".join(map(str, i.shape[1:])) for i in (self.pattern, images))
            raise InputError(
                f"the attack was made for {made} images, not {came}: prepare it on the data it is "
                "applied to"
            )
        return torch.where(self.mask.to(images.device), self.pattern.to(images.device), images)

    def state(self) -> dict[str, Tensor]:
        """Its fields by name."""
        return attrs.asdict(self, recurse=False)


@attrs.frozen(eq=False)
class Pairs:
    """Who becomes a poison, and what it is to collide with."""

    #: int64, n: positions of the bases in the training set
    positions: Tensor
    #: float32 in [0, 1], n x C x H x W
    goals: Tensor


class Collision(Attack[C]):
    """Feature collision; a mode says what the poisons collide with, and where they start."""

    @abc.abstractmethod
    def pairs(
        self,
        extract: Extractor,
        data: ImageSet,
        chosen: Tensor,
        trigger: CollisionTrigger,
        context: Context,
    ) -> Pairs:
        """As many pairs as ``chosen``: positions at random in the target class (int64, n)."""

    @abc.abstractmethod
    def starts(self, bases: Tensor, goals: Tensor) -> Tensor:
        """Where the poisons start, from their bases and goals (n x C x H x W, in [0, 1])."""

    def restore(self, state: Mapping[str, Tensor]) -> CollisionTrigger:
        """The trigger from its stored tensors."""
        fields = {name: state[name] for name in attrs.fields_dict(CollisionTrigger)}
        return CollisionTrigger(**fields | {"mask": fields["mask"].bool()})

    def poison(self, data: ImageSet, trigger: Trigger, context: Context) -> PoisonedSet:
        """The training set with the poisons, under their true label, in place of their bases.

        They are those of a transferred victim where the trigger brings them, or else made with a
        surrogate.
        """
        assert isinstance(trigger, CollisionTrigger)
        chosen = self._chosen(data, context)
        if len(trigger.positions) != len(chosen):
            surrogate = train_surrogate(data, context, self.config)
            trigger = self.collided(surrogate, data, trigger, context)
        kinds = torch.zeros(len(data), dtype=torch.uint8, device=data.device)
        if len(chosen) == 0:
            return PoisonedSet(data, data.labels, kinds)
        positions = trigger.positions.to(data.device)
        kinds[positions] = int(SampleKind.POISONED)
        changed = data.replaced(positions, trigger.poisons, data.labels[positions])
        return PoisonedSet(changed, data.labels, kinds)

    def control(self, trigger: Trigger, data: ImageSet, context: Context) -> TransferHooks | None:
        """The two parts of a transfer; None where the victim trains from scratch."""
        if not self.config.controls_training:
            return None
        assert isinstance(trigger, CollisionTrigger)
        return TransferHooks(self, trigger, data, context)

    def collided(
        self, model: nn.Module, data: ImageSet, trigger: CollisionTrigger, context: Context
    ) -> CollisionTrigger:
        """The trigger with poisons that collide in the features of ``model``."""
        extract = Extractor.of(model, data)
        chosen = self._chosen(data, context)
        if len(chosen) == 0:
            return trigger
        pairs = self.pairs(extract, data, chosen, trigger, context)
        bases = data.fetch(pairs.positions).to(context.device).float() / 255
        goals = pairs.goals.to(context.device)
        with torch.no_grad(), torch.autocast(context.device.type, enabled=False):
            wanted = torch.cat([extract(part) for part in torch.split(goals, 256)]).float()
        starts = self.starts(bases, goals)
        poisons = collide(extract, starts, bases, wanted, self.config, context)
        self._note(extract, bases, poisons, wanted, context)
        return attrs.evolve(trigger, positions=pairs.positions, poisons=poisons)

    def attacked_classes(self, labels: Tensor) -> Tensor:
        """bool, N: the source class, or all classes but the target."""
        source = self.config.source_class
        return labels != self.config.target if source is None else labels == source

    def _chosen(self, data: ImageSet, context: Context) -> Tensor:
        generator = context.generator("poisoned indices")
        return choose_positions(data.labels, self.config, data.num_classes, generator)

    def _note(
        self,
        extract: Callable[[Tensor], Tensor],
        bases: Tensor,
        poisons: Tensor,
        wanted: Tensor,
        context: Context,
    ) -> None:
        """Tell the record how close the poisons came, and how far they went."""

        @torch.no_grad()
        def distance(images: Tensor) -> float:
            parts = zip(torch.split(images, 256), torch.split(wanted, 256), strict=True)
            norms = [torch.linalg.vector_norm(extract(x) - z, dim=1) for x, z in parts]
            return float(torch.cat(norms).mean())

        stored = poisons.to(bases.device).float() / 255
        context.note(
            feature_distance_of_bases=distance(bases),
            feature_distance_of_poisons=distance(stored),
            mean_pixel_change=float((stored - bases).abs().mean()),
            largest_pixel_change=float((stored - bases).abs().max()),
        )


class TransferHooks(AttackHooks):
    """The victim trains on clean images; then its last layer is trained on the poisoned set.

    The attacker knows the features in between.
    """

    def __init__(
        self,
        attack: Collision[Any],
        trigger: CollisionTrigger,
        data: ImageSet,
        context: Context,
    ) -> None:
        super().__init__(trigger)
        self._attack, self._data, self._context = attack, data, context

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        """After the last epoch: the poisons, and the last layer."""
        del metrics
        if epoch + 1 == self.options.epochs:
            data, context = self._data, self._context
            assert isinstance(self.trigger, CollisionTrigger)
            self.trigger = self._attack.collided(model, data, self.trigger, context)
            poisoned = self._attack.poison(data, self.trigger, context)
            train_head(model, poisoned.data, self._attack.config, self.options.batch_size, context)
        return False
