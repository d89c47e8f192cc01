"""ANP: learn masks under perturbed units, prune the lowest."""

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
from backdoorkit_anp import ANPConfig
from backdoorkit_anp._masks import learn_masks

if TYPE_CHECKING:
    from backdoorkit.api import Context, DefenseTask, ImageSet, Structure

__all__ = ["ANP"]


class ANP(Defense[ANPConfig]):
    """Perturbed units make a backdoored model answer with the target long before a clean one fails.

    Masks learnt against such perturbations fall to zero on the units that hold the backdoor. These
    are pruned in the original weights; nothing is fine-tuned.
    """

    def check(self, structure: Structure) -> None:
        masked_layers(structure, self.config.units, "anp")

    def run(self, task: DefenseTask, context: Context) -> DefenseResult:
        if not len(task.clean):
            raise InputError("anp needs clean samples, but the reserve is empty; raise its size")
        config, model = self.config, task.model.to(context.device)
        layers = masked_layers(context.structure(model), config.units, "anp")
        reserve, held_out = self._parts(task.clean.to(context.device), context)
        with masked(
            model, layers, batch_statistics=config.norm_statistics == "batch"
        ) as masked_model:
            masks = learn_masks(masked_model, reserve, config, context)
        if not bool(masks.isfinite().all()):
            raise ContractError(
                "anp: the masks are not finite; lower learning_rate (now "
                f"{config.learning_rate:g}) or epsilon (now {config.epsilon:g})"
            )
        pruned = prune_by_masks(model, layers, masks, config, held_out, context)
        details: dict[str, Any] = {
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
            "iterations": config.iterations,
        }
        tensors = {f"masks.{name}": part for name, part in by_layer(masks, layers).items()}
        return DefenseResult(model=model, details=details, tensors=tensors)

    def _parts(self, clean: ImageSet, context: Context) -> tuple[ImageSet, ImageSet | None]:
        """What masks are learnt on, and what levels are judged on."""
        if self.config.selection is Selection.FIXED:
            return clean, None
        generator = context.generator("held-out part")
        return split_reserve(clean, self.config.held_out, generator)
