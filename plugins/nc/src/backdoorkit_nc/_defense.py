"""The defense: reverse the trigger, then make the model immune to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import torch

from backdoorkit.api import (
    Defense,
    DefenseResult,
    predictions_without,
    refuse_other_head,
    require_linear_head,
    split_reserve,
)
from backdoorkit_nc import RepairConfig
from backdoorkit_nc._inversion import images_at_once, success_rates
from backdoorkit_nc._neurons import (
    excitation,
    head_pass,
    other_classes,
    units_to_prune,
)
from backdoorkit_nc._unlearning import ReversedTriggerUnlearning
from backdoorkit_nc._verdict import Verdict, examine, refuse_few_classes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from backdoorkit.api import Context, DefenseTask, ImageSet, Structure

__all__ = ["NeuralCleanseRepair"]

_ADVICE: Final = "choose repair = 'unlearning'"


class NeuralCleanseRepair(Defense[RepairConfig]):
    """Repairs the flagged classes; a model without any is returned as it came."""

    def check(self, structure: Structure) -> None:
        refuse_few_classes(structure)
        if self.config.repair == "pruning":
            require_linear_head(structure, "nc with repair = 'pruning'", _ADVICE)

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        model, structure = task.model, context.structure(task.model)
        self.check(structure)
        # Before the costly part, which a reserve too small to be split would waste.
        fitted, held_out = self._parts(task.clean, context)
        verdict = examine(model, task.clean, task.num_classes, self.config, context)
        details, tensors = verdict.details(), verdict.tensors()
        if not verdict.flagged:
            details |= {"repair": "none", "reason": "no class was flagged; the model is unchanged"}
            return DefenseResult(model=model, details=details, tensors=tensors)

        details["repair"] = self.config.repair
        details["success_before"] = self._success(model, verdict, held_out, context)
        if self.config.repair == "pruning":
            facts, kept = self._prune(model, structure, verdict, fitted, held_out, context)
            tensors |= kept
        else:
            facts = self._unlearn(model, verdict, fitted, held_out, context)
        details |= facts
        details["success_after"] = self._success(model, verdict, held_out, context)
        return DefenseResult(model=model, details=details, tensors=tensors)

    def _parts(self, clean: ImageSet, context: Context) -> tuple[ImageSet, ImageSet]:
        """What to repair on and what to judge on; all there is where nothing is judged."""
        if self.config.repair == "unlearning" and self.config.unlearning_stop is None:
            return clean, clean
        return split_reserve(clean, self.config.held_out, context.generator("held-out part"))

    def _success(
        self, model: nn.Module, verdict: Verdict, data: ImageSet, context: Context
    ) -> dict[str, float]:
        """Success of each flagged class's reversed trigger on images of the other classes."""
        model.eval()
        size = images_at_once(data.shape, context.device)
        rates = {}
        for label in verdict.flagged:
            mask, pattern, classes = (
                part.to(context.device)
                for part in (*_triggers(verdict, (label,)), torch.tensor([label]))
            )
            rate = success_rates(model, data, mask, pattern, classes, size, others_only=True)
            rates[str(label)] = float(rate)
        return rates

    # -- unlearning --------------------------------------------------------------------------------

    def _unlearn(
        self,
        model: nn.Module,
        verdict: Verdict,
        fitted: ImageSet,
        held_out: ImageSet,
        context: Context,
    ) -> dict[str, Any]:
        stop = self.config.unlearning_stop

        def is_done(model: nn.Module) -> bool:
            successes = self._success(model, verdict, held_out, context).values()
            return stop is not None and max(successes) <= stop

        masks, patterns = _triggers(verdict, verdict.flagged)
        hooks = ReversedTriggerUnlearning(
            masks.to(context.device),
            patterns.to(context.device),
            ratio=self.config.stamped_ratio,
            generator=context.generator("reversed triggers of a batch"),
            is_done=None if stop is None else is_done,
        )
        summary = context.fit(model, fitted, self.config, hooks=hooks)
        return {
            "unlearning_epochs": summary.epochs_run,
            "unlearning_stop": "trigger-removed" if summary.stopped_early else "epochs",
        }

    # -- pruning -----------------------------------------------------------------------------------

    def _prune(
        self,
        model: nn.Module,
        structure: Structure,
        verdict: Verdict,
        fitted: ImageSet,
        held_out: ImageSet,
        context: Context,
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Zero the head's columns of the units that the reversed triggers excite most.

        That is what masking the units does, but in plain weights.
        """
        head = cast("nn.Linear", model.get_submodule(structure.head))
        weight = head.weight.detach().cpu()

        changes = []
        for label in verdict.flagged:
            others = other_classes(fitted, label)
            untouched, _ = head_pass(model, structure, others, context)
            triggered, _ = head_pass(model, structure, others, context, _one(verdict, label))
            changes.append(excitation(untouched, triggered))
        change = torch.stack(changes).amax(dim=0)
        order = change.argsort(descending=True, stable=True)
        candidates = order[: int(self.config.largest_share * len(order))]

        features, logits = head_pass(model, structure, held_out, context)
        refuse_other_head("nc", features, logits, head, _ADVICE)
        predicted = _without(features, logits, weight, candidates)
        accuracies = (predicted == held_out.labels.cpu()).double().mean(dim=1)
        by_label = []
        for label in verdict.flagged:
            others = other_classes(held_out, label)
            features, logits = head_pass(model, structure, others, context, _one(verdict, label))
            predicted = _without(features, logits, weight, candidates)
            by_label.append((predicted == label).double().mean(dim=1))
        successes = torch.stack(by_label).amax(dim=0)

        count, reason = units_to_prune(
            accuracies, successes, tolerance=self.config.tolerance, stop=self.config.pruning_stop
        )
        with torch.no_grad():
            head.weight[:, order[:count].to(head.weight.device)] = 0
        facts = {
            "layer": structure.head,
            "units": len(order),
            "pruned_units": order[:count].tolist(),
            "pruning_stop": reason,
            "held_out_accuracy": float(accuracies[0]),
            "held_out_accuracy_pruned": float(accuracies[count]),
        }
        return facts, {
            "excitation": change,
            "held_out_accuracies": accuracies,
            "held_out_successes": successes,
        }


def _without(features: Tensor, logits: Tensor, weight: Tensor, units: Tensor) -> Tensor:
    """Predicted classes (n + 1, N) with the first 0, 1, ..., n of ``units`` removed."""
    return torch.stack(list(predictions_without(features, logits, weight, units)))


def _one(verdict: Verdict, label: int) -> tuple[Tensor, Tensor]:
    return verdict.triggers.masks[label], verdict.triggers.patterns[label]


def _triggers(verdict: Verdict, labels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    chosen = list(labels)
    return verdict.triggers.masks[chosen], verdict.triggers.patterns[chosen]
