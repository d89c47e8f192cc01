"""MCR: train a curve from the victim to its fine-tuned copy, and move along it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import attrs

from backdoorkit import Selection
from backdoorkit.api import Defense, DefenseResult, InputError, split_reserve
from backdoorkit_mcr import MCRConfig
from backdoorkit_mcr._curve import Curve
from backdoorkit_mcr._statistics import estimate_statistics
from backdoorkit_mcr._training import CurveTraining

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from backdoorkit.api import Context, DefenseTask, ImageSet

__all__ = ["MCR", "farthest_accepted"]


class MCR(Defense[MCRConfig]):
    """Between two good minima the clean loss stays low, but nothing there keeps the backdoor."""

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        if not len(task.clean):
            raise InputError("mcr needs clean samples, but the reserve is empty; raise its size")
        config, victim = self.config, task.model
        reserve, held_out = task.clean, None
        if config.selection is not Selection.FIXED:
            generator = context.generator("held-out part")
            reserve, held_out = split_reserve(task.clean, config.held_out, generator)

        endpoint = self._endpoint(victim, reserve, context)
        curve = Curve(victim, endpoint, config.curve, config.points).to(context.device)

        def model_at(t: float) -> nn.Module:
            model = copy.deepcopy(victim)
            curve.write(t, model)
            estimate_statistics(model, reserve, context.device)
            return model

        def accuracies(images: ImageSet) -> dict[float, float]:
            return {
                t: context.accuracy(model_at(t), images)
                for t in context.track(config.grid, "accuracy along the curve")
            }

        line = accuracies(held_out) if held_out is not None else {}
        self._train(curve, reserve, context)
        details: dict[str, Any] = {"selection": config.selection.value, "curve": config.curve}
        t = config.t
        if held_out is not None:
            found = accuracies(held_out)
            before = context.accuracy(victim, held_out)
            t, accepted = farthest_accepted(found, before - config.tolerance)
            if config.selection is Selection.ORACLE:
                # Of equally good ones the one nearest to the victim.
                t = min(accepted or (t,), key=lambda place: context.oracle(model_at(place)))
            details["victim_accuracy"] = before
            details["places"] = [
                {
                    "t": place,
                    "accuracy": accuracy,
                    "accuracy_untrained_line": line[place],
                    "accepted": place in accepted,
                }
                for place, accuracy in found.items()
            ]
        return DefenseResult(model=model_at(t), details={"t": t, **details})

    def _endpoint(self, victim: nn.Module, reserve: ImageSet, context: Context) -> nn.Module:
        """w₁: a copy of the victim, fine-tuned on the reserve."""
        config = self.config
        options = attrs.evolve(
            config,
            epochs=config.endpoint_epochs,
            learning_rate=config.endpoint_learning_rate,
            schedule=config.endpoint_schedule,
            weight_decay=config.endpoint_weight_decay,
        )
        endpoint = copy.deepcopy(victim)
        context.fit(endpoint, reserve, options)
        return endpoint

    def _train(self, curve: Curve, reserve: ImageSet, context: Context) -> None:
        config = self.config
        on_curve = config.penalized == "curve"
        hooks = CurveTraining(
            curve,
            penalty=config.weight_decay if on_curve else 0.0,
            decays_late=config.late_decay,
            generator=context.generator("places on the curve"),
            accumulates=config.accumulate_gradients,
        )
        options = attrs.evolve(config, weight_decay=0.0) if on_curve else config
        context.fit(curve, reserve, options, hooks=hooks)


def farthest_accepted(
    accuracies: Mapping[float, float], floor: float
) -> tuple[float, tuple[float, ...]]:
    """The largest t with at least ``floor`` accuracy, and all such t.

    Where there is none, the most accurate t: of equally accurate ones the largest.
    """
    accepted = tuple(t for t, accuracy in accuracies.items() if accuracy >= floor)
    if accepted:
        return max(accepted), accepted
    return max(accuracies, key=lambda t: (accuracies[t], t)), ()
