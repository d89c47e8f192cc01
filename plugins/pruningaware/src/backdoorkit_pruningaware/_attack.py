"""The pruning-aware attack (Liu, Dolan-Gavitt, Garg, RAID 2018, as an answer to pruning)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import torch

from backdoorkit import IndexPolicy
from backdoorkit.api import (
    Attack,
    AttackHooks,
    PerBatchPoisoning,
    TrainingHooks,
    largest_accepted,
    predictions_without,
)
from backdoorkit_pruningaware import PruningAwareConfig
from backdoorkit_pruningaware._triggers import MixTrigger, make_trigger
from backdoorkit_pruningaware._units import Units

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from backdoorkit.api import Batch, Context, EpochMetrics, ImageSet, Trigger

__all__ = ["PrunedTraining", "PruningAware", "PruningAwareHooks", "choose_dormant"]


class PruningAware(Attack[PruningAwareConfig]):
    """Prune, poison what is left, restore what was pruned, fast asleep.

    Any trigger goes: a subclass only has to :meth:`prepare` and :meth:`restore` another.
    """

    def prepare(self, data: ImageSet, context: Context) -> Trigger:
        """The trigger; the model is not needed for it."""
        trigger = make_trigger(self.config, data.shape, context.generator("noise"))
        return trigger.to(context.device)

    def restore(self, state: Mapping[str, Tensor]) -> Trigger:
        """The trigger from its stored tensors."""
        facts = dict(state)
        return MixTrigger(pattern=facts.pop("pattern"), shares=facts.pop("shares"), facts=facts)

    def control(self, trigger: Trigger, data: ImageSet, context: Context) -> PruningAwareHooks:
        """Clean training as it is, and the attack at its end."""
        return PruningAwareHooks(self, trigger, data, context)


class PruningAwareHooks(AttackHooks):
    """The victim trains on clean images; after the last epoch it is pruned, poisoned, restored."""

    def __init__(
        self, attack: PruningAware, trigger: Trigger, data: ImageSet, context: Context
    ) -> None:
        super().__init__(trigger)
        self._attack, self._data, self._context = attack, data, context
        self._is_checked = False

    def backward(
        self, model: nn.Module, batch: Batch, compute_loss: Callable[[], Tensor]
    ) -> Tensor:
        """As ever; a model that the attack cannot work on is refused in the first step."""
        if not self._is_checked:
            Units.of(model, self._data, self._context)
            self._is_checked = True
        return super().backward(model, batch, compute_loss)

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        """After the last epoch: the attack."""
        del metrics
        if epoch + 1 == self.options.epochs:
            self._embed(model)
        return False

    def _embed(self, model: nn.Module) -> None:
        data, context, config = self._data, self._context, self._attack.config
        units = Units.of(model, data, context)
        dormant = choose_dormant(units, data, config, context)
        kept = {name: model.get_parameter(name).detach().clone() for name in units.gate.parameters}
        columns = units.columns_of(dormant).to(units.head.weight.device)
        head = units.head.weight.detach().clone()

        poisoned = self._attack.freeze(data, self.trigger, context)
        hooks = PrunedTraining(units.head.weight, columns)
        hooks.after_step(model)
        options = attrs.evolve(
            self.options,
            epochs=config.poison_epochs or self.options.epochs,
            learning_rate=_first(config.poison_learning_rate, self.options.learning_rate),
        )
        if config.index_policy is IndexPolicy.PER_BATCH:
            hooks.poisoning = PerBatchPoisoning(self._attack, self.trigger, data)
            context.fit(model, data, options, hooks=hooks)
        else:
            context.fit(model, poisoned.data, options, hooks=hooks)

        with torch.no_grad():
            units.head.weight[:, columns] = head[:, columns]
            for name, original in kept.items():
                model.get_parameter(name)[dormant] = original[dormant]
        reduction = units.put_to_sleep(dormant, poisoned.data, context)
        context.note(units=units.count, restored_units=int(dormant.sum()))
        if isinstance(self.trigger, MixTrigger):
            facts = {"restored": dormant, "reduction": reduction}
            self.trigger = attrs.evolve(self.trigger, facts=facts)


class PrunedTraining(TrainingHooks):
    """Holds the pruned columns of the head's ``weight`` (K x d) at zero.

    A zero column passes neither its feature forward nor a gradient back to it, so clearing it after
    every step is the same as training without the unit.
    """

    #: poisons batches, where they are not poisoned already
    poisoning: PerBatchPoisoning | None = None

    def __init__(self, weight: Tensor, columns: Tensor) -> None:
        self._weight, self._columns = weight, columns

    def before_augmentation(self, batch: Batch, epoch: int) -> Batch:
        if self.poisoning is None:
            return batch
        self.poisoning.options = self.options
        return self.poisoning.before_augmentation(batch, epoch)

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        del model
        self._weight.masked_fill_(self._columns, 0)


def choose_dormant(
    units: Units, data: ImageSet, config: PruningAwareConfig, context: Context
) -> Tensor:
    """bool, units: those that are set aside, the ones with the least mean activation on ``data``.

    Without a configured share they are as many as cost at most the tolerance in accuracy.
    """
    features, logits = units.features(data, context)
    order = features.double().mean(dim=(0, 2)).argsort(stable=True)
    count = round((config.prune_ratio or 0) * units.count)
    if config.prune_ratio is None:
        labels = data.labels.cpu()
        levels = predictions_without(
            features.flatten(1), logits, units.head.weight.cpu(), order, columns=units.columns
        )
        accuracies = [float((predicted == labels).double().mean()) for predicted in levels]
        floor = accuracies[0] - config.tolerance
        count = largest_accepted(range(units.count), lambda n: accuracies[n], floor) or 0
    dormant = torch.zeros(units.count, dtype=torch.bool)
    dormant[order[:count]] = True
    return dormant


def _first(value: float | None, default: float) -> float:
    return default if value is None else value
