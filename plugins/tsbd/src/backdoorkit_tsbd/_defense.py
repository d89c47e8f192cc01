"""TSBD: unlearn, zero what changed most, fine-tune with the neurons' activeness kept low."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from backdoorkit import Selection
from backdoorkit.api import (
    Defense,
    DefenseResult,
    InputError,
    chance,
    largest_accepted,
    split_reserve,
)
from backdoorkit_tsbd import TSBDConfig
from backdoorkit_tsbd._activeness import ActivenessAwareTuning
from backdoorkit_tsbd._layers import ranked_weights
from backdoorkit_tsbd._reinitialisation import (
    neuron_weight_change,
    reinitialisation_mask,
    weight_change,
    zero_weights,
)
from backdoorkit_tsbd._unlearning import ascent_options, unlearn_to

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from backdoorkit.api import Context, DefenseTask, ImageSet, Structure, Unlearned

__all__ = ["TSBD"]


class TSBD(Defense[TSBDConfig]):
    """The neurons that unlearning clean images changes most are those that hold the backdoor.

    Stage 1 zeroes their most changed weights. Stage 2 fine-tunes and keeps the gradient's norm
    small meanwhile: a backdoored model's neurons are too ready to take the backdoor up again.
    """

    def check(self, structure: Structure) -> None:
        ranked_weights(structure, self.config.layers)

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        if not len(task.clean):
            raise InputError("tsbd needs clean samples, but the reserve is empty; raise its size")
        config, victim = self.config, task.model
        names = ranked_weights(context.structure(victim), config.layers)
        is_fixed = config.selection is Selection.FIXED
        reserve, held_out = (task.clean, None) if is_fixed else self._parts(task.clean, context)

        options = ascent_options(config, config.unlearning_rate, config.max_epochs)
        stop = chance(reserve) if config.stop_accuracy is None else config.stop_accuracy
        growth = config.unlearning_growth
        unlearned = unlearn_to(stop, victim, reserve, options, growth, context)
        change = weight_change(
            {name: victim.get_parameter(name) for name in names},
            {name: unlearned.model.get_parameter(name) for name in names},
        )

        def masks_at(neuron_ratio: float) -> dict[str, Tensor]:
            generator = context.generator("neuron order")
            return reinitialisation_mask(
                change, neuron_ratio, config.zero_ratio, order=config.order, generator=generator
            )

        def repair(neuron_ratio: float) -> nn.Module:
            model = copy.deepcopy(victim)
            zero_weights(model, masks_at(neuron_ratio))
            tuning = ActivenessAwareTuning(
                perturbation=config.perturbation, blend=config.blend, norm=config.norm
            )
            context.fit(model, reserve, config, hooks=tuning)
            return model

        if held_out is None:
            neuron_ratio, model = config.neuron_ratio, repair(config.neuron_ratio)
        else:
            neuron_ratio, model = self._choose(repair, victim, held_out, context)
        scores = neuron_weight_change(change)
        return DefenseResult(
            model=model,
            details=self._details(neuron_ratio, scores, masks_at(neuron_ratio), unlearned),
            tensors={f"neuron_weight_change.{name}": score for name, score in scores.items()},
        )

    def _parts(self, clean: ImageSet, context: Context) -> tuple[ImageSet, ImageSet]:
        return split_reserve(clean, self.config.held_out, context.generator("held-out part"))

    def _choose(
        self,
        repair: Callable[[float], nn.Module],
        victim: nn.Module,
        held_out: ImageSet,
        context: Context,
    ) -> tuple[float, nn.Module]:
        """The neuron ratio by the selection rule, and the model repaired with it.

        Stage 1 alone always costs much accuracy, so a ratio is judged after stage 2. Where even the
        smallest costs too much, nothing is zeroed.
        """
        models: dict[float, nn.Module] = {}

        def accuracy_at(neuron_ratio: float) -> float:
            models[neuron_ratio] = repair(neuron_ratio)
            return context.accuracy(models[neuron_ratio], held_out)

        floor = context.accuracy(victim, held_out) - self.config.tolerance
        chosen = largest_accepted((0.0, *self.config.grid), accuracy_at, floor) or 0.0
        if self.config.selection is Selection.ORACLE:
            accepted = [ratio for ratio in models if ratio <= chosen]
            chosen = min(accepted, key=lambda ratio: context.oracle(models[ratio]))
        return chosen, models[chosen]

    def _details(
        self,
        neuron_ratio: float,
        scores: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        unlearned: Unlearned,
    ) -> dict[str, Any]:
        return {
            "neuron_ratio": neuron_ratio,
            "selection": self.config.selection.value,
            "order": self.config.order,
            "layers": len(scores),
            "neurons": sum(len(score) for score in scores.values()),
            "weights": sum(mask.numel() for mask in masks.values()),
            "zeroed_weights": sum(int(mask.sum()) for mask in masks.values()),
            "unlearning_epochs": unlearned.epochs,
            "unlearning_accuracy": unlearned.accuracy,
            "unlearning_rate": unlearned.learning_rate,
            "unlearning_stop": unlearned.stop_reason,
        }
