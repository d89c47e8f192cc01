"""Fine-Pruning: rank units by clean activation, prune while accuracy allows, fine-tune."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from backdoorkit import Selection
from backdoorkit.api import (
    Defense,
    DefenseResult,
    InputError,
    TrainingHooks,
    collect_features,
    largest_accepted,
    refuse_other_head,
    require_linear_head,
    split_reserve,
)
from backdoorkit_fp import FinePruningConfig
from backdoorkit_fp._pruning import (
    accuracy_sweep,
    columns_per_unit,
    levels,
    pruned_columns,
    unit_activations,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from backdoorkit.api import Context, DefenseTask, ImageSet, Structure

__all__ = ["FinePruning", "KeepPruned"]


class FinePruning(Defense[FinePruningConfig]):
    """Prunes penultimate units from the least active up, then trains on with them held at zero.

    A unit is pruned by zeroing its columns of the last linear layer: exactly what masking its
    activation does, but in plain weights that load into the original architecture.
    """

    def check(self, structure: Structure) -> None:
        require_linear_head(structure, "fp", "use another defense")

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        if not len(task.clean):
            raise InputError("fp needs clean samples, but the reserve is empty; raise its size")
        model, structure = task.model, context.structure(task.model)
        name = structure.require_head("fp")
        head = cast("nn.Linear", model.get_submodule(name))
        held_out = self._held_out(task.clean, context)
        columns = columns_per_unit(model, head, task.clean, context)
        features, logits = collect_features(model, structure, task.clean, context)
        refuse_other_head("fp", features, logits, head, "use another defense")
        activations, statistic = unit_activations(features, columns, self.config.statistic)
        order = activations.argsort(stable=True)

        features, logits = collect_features(model, structure, held_out, context)
        accuracies = accuracy_sweep(features, logits, held_out.labels, head.weight, order, columns)
        count = self._choose(model, head, order, columns, accuracies, context)

        keep_pruned = KeepPruned(head, pruned_columns(order, count, columns))
        keep_pruned.after_step(model)
        summary = context.fit(model, task.clean, self.config, hooks=keep_pruned)
        return DefenseResult(
            model=model,
            details={
                "layer": name,
                "units": len(order),
                "columns_per_unit": columns,
                "pruned_units": count,
                "statistic": statistic,
                "selection": self.config.selection.value,
                "held_out_samples": len(held_out),
                "held_out_accuracy": float(accuracies[0]),
                "held_out_accuracy_pruned": float(accuracies[count]),
                "fine_tuning_epochs": summary.epochs_run,
            },
            tensors={
                "activations": activations.float(),
                "order": order,
                "held_out_accuracies": accuracies.float(),
            },
        )

    def _held_out(self, clean: ImageSet, context: Context) -> ImageSet:
        """What levels are judged on; a fixed level is only described, on all there is."""
        if self.config.selection is Selection.FIXED:
            return clean
        generator = context.generator("held-out part")
        return split_reserve(clean, self.config.held_out, generator)[1]

    def _choose(
        self,
        model: nn.Module,
        head: nn.Linear,
        order: Tensor,
        columns: int,
        accuracies: Tensor,
        context: Context,
    ) -> int:
        """Number of units to prune."""
        if self.config.selection is Selection.FIXED:
            return round(self.config.ratio * len(order))
        tried = levels(len(order), self.config.step)
        floor = float(accuracies[0]) - self.config.tolerance
        # Pruning nothing keeps all accuracy, so there is always a level.
        most = largest_accepted(tried, lambda count: float(accuracies[count]), floor) or 0
        if self.config.selection is Selection.CLEAN:
            return most

        def attack_success(count: int) -> float:
            weights = head.weight.detach().clone()
            KeepPruned(head, pruned_columns(order, count, columns)).after_step(model)
            success = context.oracle(model)
            with torch.no_grad():
                head.weight.copy_(weights)
            return success

        return min((count for count in tried if count <= most), key=attack_success)


class KeepPruned(TrainingHooks):
    """Holds pruned columns at exactly zero.

    A zero column passes neither its feature forward nor a gradient back to it, so clearing it after
    every step is the same as masking the activation in the forward pass.
    """

    def __init__(self, head: nn.Linear, pruned: Tensor) -> None:
        self._head = head
        self._pruned = pruned.to(head.weight.device)

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        del model
        self._head.weight.masked_fill_(self._pruned, 0)
