"""TAC: which neurons the trigger moves, and how many of them weight changes find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from backdoorkit import TrainOptions
from backdoorkit.api import (
    Analysis,
    AnalysisResult,
    InputError,
    StructureError,
    batches,
    chance,
    new_figure,
)
from backdoorkit_tsbd import TriggerActivatedChangeConfig
from backdoorkit_tsbd._channels import ChannelActivity, channel_activity, norms_of, with_outputs
from backdoorkit_tsbd._correlation import spearman
from backdoorkit_tsbd._coverage import coverage, top_count
from backdoorkit_tsbd._layers import last_ranked, ranked_layers
from backdoorkit_tsbd._reinitialisation import neuron_weight_change, weight_change
from backdoorkit_tsbd._unlearning import ascent_options, unlearn_to

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from backdoorkit.api import AnalysisTask, Context, ImageSet, PrunableLayer, Structure

__all__ = ["TriggerActivatedChange", "paired"]

#: shares of a layer's neurons at which coverage is drawn
_SHARES = tuple(step / 20 for step in range(1, 20))


_CAPTIONS = {
    "coverage": "Share of the neurons of the last layer with the largest "
    "trigger-activated change that are also among the first of each ranking. The "
    "dotted line is chance.",
    "activations": "Mean rectified activation of each channel of the last layer on "
    "test images without and with the trigger, sorted by the former. Where the two "
    "differ, the trigger shows.",
}


class TriggerActivatedChange(Analysis[TriggerActivatedChangeConfig]):
    """TAC of every channel, and how well rankings that know no trigger agree with it.

    Rankings: the weight change of clean unlearning (TSBD's), and low activation on clean images
    (Fine-Pruning's). Chance is the ratio itself.
    """

    def check(self, structure: Structure) -> None:
        ranked_layers(structure, self.config.layers, "trigger-activated-change")

    def run(self, task: AnalysisTask, context: Context) -> AnalysisResult:
        config, victim, twin = self.config, task.model, task.clean_twin
        structure = context.structure(victim)
        clean, triggered = paired(task, config.images, context)
        layers = self._layers(victim, structure, clean, context)

        def activity(model: nn.Module) -> dict[str, ChannelActivity]:
            return channel_activity(
                model,
                structure,
                layers,
                clean,
                triggered,
                context,
                order=1 if config.norm == "l1" else 2,
                after_norm=config.after_norm,
            )

        forgotten, poison = self._unlearned(task, context)
        models = {
            "clean twin": twin,
            "backdoored model": victim,
            "after clean unlearning": forgotten,
            "after poison unlearning": poison,
        }
        activities = {name: activity(model) for name, model in models.items()}
        found = activities["backdoored model"]
        rankings = {
            "NWC": _by_weight_change(victim, forgotten, layers),
            "activation": {name: -layer.clean for name, layer in found.items()},
        }
        weights = tuple(layer.weight for layer in layers)
        last = layers[weights.index(last_ranked(structure, weights))].name
        return AnalysisResult(
            values=self._values(rankings, found, activities["clean twin"], last),
            details={
                "last_layer": last,
                "images": len(clean),
                "norm": config.norm,
                "location": self._location(structure, layers),
                "by_layer": {
                    layer.name: self._compared(rankings, found, layer.name) for layer in layers
                },
            },
            tensors={
                **{f"change.{name}": layer.change for name, layer in found.items()},
                **{
                    f"{ranking}.{name}": scores
                    for ranking, by_layer in rankings.items()
                    for name, scores in by_layer.items()
                },
            },
            figures={
                "coverage": _coverage_curves(rankings, found[last].change, last),
                "activations": _panels({name: a[last] for name, a in activities.items()}),
            },
            captions=_CAPTIONS,
        )

    def _layers(
        self, model: nn.Module, structure: Structure, images: ImageSet, context: Context
    ) -> tuple[PrunableLayer, ...]:
        ranked = ranked_layers(structure, self.config.layers, context.method)
        (first,) = batches(images.subset(torch.arange(1)), 1, device=context.device)
        layers = with_outputs(model, structure, ranked, first.images)
        if not layers:
            raise StructureError(
                f"{context.method} needs layers with an output of their own, and "
                f"{structure.network} has attention projections only; choose layers = 'conv'"
            )
        return layers

    def _unlearned(self, task: AnalysisTask, context: Context) -> tuple[nn.Module, nn.Module]:
        """The victim after unlearning the clean reserve, and after unlearning it triggered."""
        config, clean = self.config, task.clean
        if not len(clean):
            raise InputError(
                "trigger-activated-change needs clean samples, but the reserve is empty; raise its "
                "size"
            )
        training = TrainOptions(batch_size=config.batch_size, momentum=config.momentum)
        options = ascent_options(training, config.unlearning_rate, config.max_epochs)
        growth = config.unlearning_growth
        forgotten = unlearn_to(chance(clean), task.model, clean, options, growth, context)
        planted = task.plant(clean)
        poison = unlearn_to(config.stop_success, task.model, planted, options, growth, context)
        return forgotten.model, poison.model

    # -- what is told ------------------------------------------------------------------------------

    def _values(
        self,
        rankings: Mapping[str, Mapping[str, Tensor]],
        found: Mapping[str, ChannelActivity],
        twin: Mapping[str, ChannelActivity],
        last: str,
    ) -> dict[str, float | None]:
        change = found[last].change
        ratio, neurons = self.config.ratio, len(change)
        values: dict[str, float | None] = {}
        for name, scores in rankings.items():
            values[f"{name} coverage"] = coverage(scores[last], change, ratio)
        values["chance"] = top_count(ratio, neurons) / neurons
        for name, scores in rankings.items():
            values[f"{name} rho"] = spearman(scores[last], change)
        below = float(twin[last].change.mean())
        values["TAC"] = float(change.mean())
        values["twin TAC"] = below
        return values

    def _compared(
        self,
        rankings: Mapping[str, Mapping[str, Tensor]],
        found: Mapping[str, ChannelActivity],
        layer: str,
    ) -> dict[str, Any]:
        change = found[layer].change
        return {
            "mean_change": float(change.mean()),
            "largest_change": float(change.max()),
            "coverage": {
                name: coverage(scores[layer], change, self.config.ratio)
                for name, scores in rankings.items()
            },
            "spearman": {
                name: spearman(scores[layer], change) for name, scores in rankings.items()
            },
        }

    def _location(self, structure: Structure, layers: tuple[PrunableLayer, ...]) -> dict[str, str]:
        """Where each layer's channels were looked at: always before the activation function."""
        norms = norms_of(structure, layers) if self.config.after_norm else {}
        return {layer.name: norms.get(layer.name, layer.name) for layer in layers}


def paired(task: AnalysisTask, count: int, context: Context) -> tuple[ImageSet, ImageSet]:
    """At most ``count`` test images that the attack can show on, without and with the trigger."""
    test = task.test
    order = torch.randperm(len(test), generator=context.generator("images"))
    some = test.subset(order[:count].sort().values)
    triggered = task.plant(some)
    attacked = torch.isin(some.ids, triggered.ids.to(some.ids.device)).nonzero().flatten()
    if not len(attacked):
        raise InputError(
            f"the attack changes none of {len(some)} test images' labels; use more of them, or "
            "another target"
        )
    return some.subset(attacked), triggered


def _by_weight_change(
    before: nn.Module, after: nn.Module, layers: tuple[PrunableLayer, ...]
) -> dict[str, Tensor]:
    """NWC by layer."""
    changes = neuron_weight_change(
        weight_change(
            {layer.weight: before.get_parameter(layer.weight) for layer in layers},
            {layer.weight: after.get_parameter(layer.weight) for layer in layers},
        )
    )
    return {layer.name: changes[layer.weight] for layer in layers}


def _coverage_curves(
    rankings: Mapping[str, Mapping[str, Tensor]], change: Tensor, last: str
) -> Figure:
    figure, (axes,) = new_figure()
    labels = {"NWC": "weight change (NWC)", "activation": "low activation"}
    for (name, scores), style in zip(rankings.items(), ("C3o-", "C0s--"), strict=True):
        heights = [coverage(scores[last], change, share) for share in _SHARES]
        drawn = [float("nan") if height is None else height for height in heights]
        axes.plot(_SHARES, drawn, style, ms=4, label=labels[name])
    axes.plot((0, 1), (0, 1), ":", color="0.4", label="chance")
    axes.set_xlabel("share of neurons that is taken")
    axes.set_ylabel("coverage of largest TAC")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _panels(layers: Mapping[str, ChannelActivity]) -> Figure:
    figure, panels = new_figure(len(layers), height=1.7)
    for axes, (name, layer) in zip(panels, layers.items(), strict=True):
        order = layer.clean.argsort(descending=True)
        positions = range(1, len(order) + 1)
        axes.bar(positions, layer.clean[order].tolist(), 1.0, color="C0", alpha=0.6, label="clean")
        triggered = layer.triggered[order].tolist()
        axes.plot(positions, triggered, "C3.", ms=4, label="triggered")
        axes.set_title(name, fontsize=10)
        axes.set_ylabel("activation")
    panels[0].legend(frameon=False, fontsize=9)
    panels[-1].set_xlabel("channels of the last layer, sorted")
    return figure
