"""Observation 2: neurons of a backdoored model are more active, that is, have larger gradients."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from backdoorkit.api import Analysis, AnalysisResult, InputError, batches, new_figure
from backdoorkit_tsbd import ActivenessConfig
from backdoorkit_tsbd._layers import last_ranked, ranked_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from backdoorkit.api import AnalysisTask, Context, ImageSet, Structure

__all__ = ["NeuronActiveness", "activeness"]


class NeuronActiveness(Analysis[ActivenessConfig]):
    """A_i of every neuron of the backdoored model and of its clean twin, on the same batches.

    Gradients also grow with the loss: both models' clean loss is told beside, because a higher one
    alone would explain larger gradients.
    """

    def check(self, structure: Structure) -> None:
        ranked_weights(structure, self.config.layers, "activeness")

    def run(self, task: AnalysisTask, context: Context) -> AnalysisResult:
        clean = task.clean
        if not len(clean):
            raise InputError("activeness needs clean samples, but the reserve is empty; enlarge it")
        models = {"victim": task.model, "twin": task.clean_twin}
        structure = context.structure(task.model)
        names = ranked_weights(structure, self.config.layers, context.method)
        last = last_ranked(structure, names)
        found = {
            name: activeness(model, names, clean, self.config, context)
            for name, model in models.items()
        }
        losses = {name: _loss(context.predict(m, clean), clean) for name, m in models.items()}
        victim, twin = found["victim"], found["twin"]
        return AnalysisResult(
            values={
                "ratio": _ratio(victim[last], twin[last]),
                "above median": _share_above(victim[last], twin[last]),
                "ratio all": _ratio(_pooled(victim), _pooled(twin)),
                "loss": losses["victim"],
                "twin loss": losses["twin"],
            },
            details={
                "last_layer": last,
                "update": self.config.update,
                "by_layer": {name: _compared(victim[name], twin[name]) for name in names},
            },
            tensors={
                f"{name}.{weight}": scores
                for name, by_weight in found.items()
                for weight, scores in by_weight.items()
            },
            figures={
                "activeness": _sorted_curves(victim[last], twin[last], losses),
            },
            captions={
                "activeness": "Mean L1 norm of each neuron's gradient on clean images, in the last "
                "layer, from the largest to the smallest. Compare the losses, too: gradients grow "
                "with them.",
            },
        )


def activeness(
    model: nn.Module,
    names: tuple[str, ...],
    data: ImageSet,
    config: ActivenessConfig,
    context: Context,
) -> dict[str, Tensor]:
    """A_i = mean over the batches of one pass of Σ_j |∂ℓ/∂w_ij|, for the rows of each weight.

    ℓ is the batch's mean cross-entropy, in train mode as when a model is tuned. The order of the
    batches follows the run's seed alone, so that it is the same for all models. With
    ``config.update``, gradient ascent takes a step after each gradient. The model is not changed.
    """
    model = copy.deepcopy(model).train()
    weights = [model.get_parameter(name) for name in names]
    rate = config.unlearning_rate if config.update else 0.0
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=config.momentum)
    totals = [torch.zeros(len(weight), device=weight.device) for weight in weights]
    count = 0
    for batch in batches(
        data,
        config.batch_size,
        generator=context.generator("order of the batches"),
        device=context.device,
        merge_singleton=config.batch_size > 1,
    ):
        optimizer.zero_grad()
        loss: Tensor = -functional.cross_entropy(model(batch.images), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        for total, weight in zip(totals, weights, strict=True):
            if weight.grad is not None:
                total.add_(weight.grad.abs().flatten(1).sum(dim=1))
        optimizer.step()
        context.count(len(batch), 1)
        count += 1
    return {name: total / count for name, total in zip(names, totals, strict=True)}


def _loss(logits: Tensor, data: ImageSet) -> float:
    return float(functional.cross_entropy(logits, data.labels.to(logits.device)))


def _pooled(scores: Mapping[str, Tensor]) -> Tensor:
    return torch.cat(list(scores.values()))


def _ratio(victim: Tensor, twin: Tensor) -> float | None:
    below = float(twin.mean())
    return float(victim.mean()) / below if below > 0 else None


def _share_above(victim: Tensor, twin: Tensor) -> float:
    """Share of the victim's neurons that are more active than the median of the twin's."""
    return float((victim > twin.double().quantile(0.5)).double().mean())


def _compared(victim: Tensor, twin: Tensor) -> dict[str, Any]:
    return {
        "victim_mean": float(victim.mean()),
        "twin_mean": float(twin.mean()),
        "victim_largest": float(victim.max()),
        "twin_largest": float(twin.max()),
        "ratio": _ratio(victim, twin),
        "share_above": _share_above(victim, twin),
    }


def _sorted_curves(victim: Tensor, twin: Tensor, losses: dict[str, float]) -> Figure:
    """Neurons of two models do not correspond; what can be compared is their distribution."""
    figure, (axes,) = new_figure()
    drawn = (("backdoored model", victim, "victim", "C3"), ("clean twin", twin, "twin", "C0"))
    for label, scores, name, colour in drawn:
        heights = scores.sort(descending=True).values.tolist()
        text = f"{label} (clean loss {losses[name]:.2g})"
        axes.plot(range(1, len(heights) + 1), heights, color=colour, label=text)
    axes.set_xlabel("neurons of the last layer, sorted")
    axes.set_ylabel("activeness (L1 of gradient)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    return figure
