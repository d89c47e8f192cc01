"""RNP: unlearn the clean task, recover it by masks, prune the original by them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backdoorkit import Selection
from backdoorkit.api import (
    ContractError,
    Defense,
    DefenseResult,
    InputError,
    by_layer,
    masked,
    masked_layers,
    prune_by_masks,
    split_reserve,
)
from backdoorkit_rnp import RNPConfig
from backdoorkit_rnp._recovery import recover
from backdoorkit_rnp._unlearning import majority_label, unlearn_clean

if TYPE_CHECKING:
    from backdoorkit.api import Context, DefenseTask, ImageSet, Structure

__all__ = ["RNP"]


class RNP(Defense[RNPConfig]):
    """Unlearning clean images wrecks the clean units and leaves those of the backdoor.

    What is left answers with the backdoor's label. Where masks alone must bring the clean task
    back, they fall on the units that stand in its way; these are pruned in the original model.
    """

    def check(self, structure: Structure) -> None:
        masked_layers(structure, self.config.units, "rnp")

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        if not len(task.clean):
            raise InputError("rnp needs clean samples, but the reserve is empty; raise its size")
        config, model = self.config, task.model.to(context.device)
        layers = masked_layers(context.structure(model), config.units, "rnp")
        reserve, held_out = self._parts(task.clean.to(context.device), context)

        unlearned = unlearn_clean(model, reserve, config, task.num_classes, context)
        label, share = majority_label(context.predict(unlearned.model, reserve))
        with masked(
            unlearned.model, layers, batch_statistics=config.norm_statistics == "batch"
        ) as masked_model:
            masks, accuracies = recover(masked_model, reserve, config, context)
        if not bool(masks.isfinite().all()):
            raise ContractError(
                "rnp: the masks are not finite; lower recovery_rate (now "
                f"{config.recovery_rate:g}) or learning_rate (now {config.learning_rate:g})"
            )
        pruned = prune_by_masks(model, layers, masks, config, held_out, context)
        details: dict[str, Any] = {
            "backdoor_label": label,
            "backdoor_label_share": share,
            "unlearning_epochs": unlearned.epochs,
            "unlearning_accuracy": unlearned.accuracy,
            "recovery_epochs": config.recovery_epochs,
            "recovery_accuracies": accuracies,
            "selection": config.selection.value,
            "prune_by": config.prune_by,
            "level": pruned.level,
            "held_out_accuracies": [list(pair) for pair in pruned.accuracies.items()],
            "layers": len(layers),
            "units": len(masks),
            "pruned_units": int(pruned.units.sum()),
            "pruned": {
                name: marked.nonzero().flatten().tolist()
                for name, marked in by_layer(pruned.units, layers).items()
                if marked.any()
            },
        }
        tensors = {f"masks.{name}": part for name, part in by_layer(masks, layers).items()}
        return DefenseResult(model=model, details=details, tensors=tensors)

    def _parts(self, clean: ImageSet, context: Context) -> tuple[ImageSet, ImageSet | None]:
        """What is unlearned and recovered, and what levels are judged on."""
        if self.config.selection is Selection.FIXED:
            return clean, None
        generator = context.generator("held-out part")
        return split_reserve(clean, self.config.held_out, generator)
