"""Observation 1: clean and poison unlearning change the same neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch
from matplotlib.ticker import MaxNLocator

from backdoorkit import TrainOptions
from backdoorkit.api import Analysis, AnalysisResult, InputError, chance, new_figure
from backdoorkit_tsbd import UnlearningCorrelationConfig
from backdoorkit_tsbd._correlation import Agreement, agreement
from backdoorkit_tsbd._layers import last_ranked, ranked_weights
from backdoorkit_tsbd._reinitialisation import neuron_weight_change, weight_change
from backdoorkit_tsbd._unlearning import ascent_options, unlearn_to

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure
    from torch import Generator, Tensor, nn

    from backdoorkit.api import AnalysisTask, Context, ImageSet, Structure, Unlearned

__all__ = ["Observed", "UnlearningCorrelation", "with_random_labels"]


_CAPTIONS = {
    "weight-change": "Weight change (L1) of each neuron of the last layer by "
    "unlearning clean images and by unlearning triggered ones: on top the backdoored "
    "model, below its clean twin as the control. Magnitudes differ with the number of "
    "steps; what counts is the correlation.",
    "by-layer": "The same correlation in every layer. The backdoored model should be "
    "above both controls.",
}


@attrs.frozen(kw_only=True, eq=False)
class Observed:
    """Two unlearnings of one model, from the same weights, and how far their changes agree."""

    #: NWC_c and NWC_p: weight change of every neuron, by weight
    by_clean: Mapping[str, Tensor]
    by_other: Mapping[str, Tensor]
    clean: Unlearned
    other: Unlearned

    @property
    def agreement(self) -> Agreement:
        return agreement(self.by_clean, self.by_other)


class UnlearningCorrelation(Analysis[UnlearningCorrelationConfig]):
    """Unlearns clean and triggered images from the same weights, and correlates what changes.

    Gradient ascent moves some neurons more than others whatever it unlearns, so that any two
    unlearnings agree somewhat. Two controls say how much: the clean twin, which has no backdoor,
    unlearns the same triggered images with the same labels; and the victim unlearns the clean
    images with random wrong labels. Both take as many epochs as the victim's poison unlearning.
    """

    def check(self, structure: Structure) -> None:
        ranked_weights(structure, self.config.layers, "unlearning-correlation")

    def run(self, task: AnalysisTask, context: Context) -> AnalysisResult:
        config, victim, clean = self.config, task.model, task.clean
        if not len(clean):
            raise InputError(
                "unlearning-correlation needs clean samples, but the reserve is empty; raise its "
                "size"
            )
        structure = context.structure(victim)
        names = ranked_weights(structure, config.layers, context.method)
        planted = task.plant(clean)
        before = context.accuracy(victim, planted)

        forgotten = self._unlearn_clean(victim, clean, context)
        poison = self._unlearn(victim, planted, config.stop_success, config.max_epochs, context)
        observed = _observed(victim, forgotten, poison, names)

        epochs = poison.epochs
        wrong = with_random_labels(clean, context.generator("wrong labels"))
        other = self._unlearn(victim, wrong, None, epochs, context)
        random = _observed(victim, forgotten, other, names)
        twin_model = task.clean_twin
        twin = _observed(
            twin_model,
            self._unlearn_clean(twin_model, clean, context),
            self._unlearn(twin_model, planted, None, epochs, context),
            names,
        )
        last = last_ranked(structure, names)
        runs = {"victim": observed, "twin": twin, "random": random}
        agreements = {name: run.agreement for name, run in runs.items()}
        return AnalysisResult(
            values=_values(agreements, last),
            details={
                "last_layer": last,
                "success": before,
                "success_after_clean_unlearning": context.accuracy(forgotten.model, planted),
                "accuracy_after_poison_unlearning": context.accuracy(poison.model, clean),
                "runs": {name: _details(runs[name], agreements[name]) for name in runs},
            },
            tensors={
                f"{name}.{kind}.{weight}": change
                for name, run in runs.items()
                for kind, changes in (("clean", run.by_clean), ("other", run.by_other))
                for weight, change in changes.items()
            },
            figures={
                "weight-change": _scatter(observed, twin, last),
                "by-layer": _by_layer(agreements),
            },
            captions=_CAPTIONS,
        )

    # -- unlearning --------------------------------------------------------------------------------

    def _unlearn_clean(self, model: nn.Module, clean: ImageSet, context: Context) -> Unlearned:
        stop = self.config.stop_accuracy
        stop = chance(clean) if stop is None else stop
        return self._unlearn(model, clean, stop, self.config.max_epochs, context)

    def _unlearn(
        self,
        model: nn.Module,
        data: ImageSet,
        stop: float | None,
        max_epochs: int,
        context: Context,
    ) -> Unlearned:
        config = self.config
        training = TrainOptions(batch_size=config.batch_size, momentum=config.momentum)
        options = ascent_options(training, config.unlearning_rate, max_epochs)
        return unlearn_to(stop, model, data, options, config.unlearning_growth, context)


def with_random_labels(data: ImageSet, generator: Generator) -> ImageSet:
    """The same images, each with a class other than its own, uniformly drawn."""
    shift = torch.randint(1, data.num_classes, (len(data),), generator=generator)
    labels = (data.labels + shift.to(data.device)) % data.num_classes
    return data.replaced(torch.arange(len(data), device=data.device), data.images, labels)


def _observed(
    model: nn.Module, clean: Unlearned, other: Unlearned, names: tuple[str, ...]
) -> Observed:
    before = {name: model.get_parameter(name) for name in names}

    def change(unlearned: Unlearned) -> dict[str, Tensor]:
        after = {name: unlearned.model.get_parameter(name) for name in names}
        return neuron_weight_change(weight_change(before, after))

    return Observed(by_clean=change(clean), by_other=change(other), clean=clean, other=other)


# -- what is told ----------------------------------------------------------------------------------


def _values(agreements: Mapping[str, Agreement], last: str) -> dict[str, float | None]:
    victim = agreements["victim"]
    values = {
        "r": victim.pearson,
        "rho": victim.spearman,
        "r within": victim.within_layers,
        "r last": victim.by_layer[last][0],
        "rho last": victim.by_layer[last][1],
    }
    for control in ("twin", "random"):
        values[f"{control} r"] = agreements[control].pearson
        values[f"{control} r last"] = agreements[control].by_layer[last][0]
    return values


def _details(run: Observed, agreed: Agreement) -> dict[str, Any]:
    return {
        **attrs.asdict(agreed),
        "by_layer": {name: list(pair) for name, pair in agreed.by_layer.items()},
        "neurons": sum(len(layer) for layer in run.by_clean.values()),
        "clean_epochs": run.clean.epochs,
        "clean_accuracy": run.clean.accuracy,
        "clean_stop": run.clean.stop_reason,
        "other_epochs": run.other.epochs,
        "other_accuracy": run.other.accuracy,
    }


def _scatter(victim: Observed, twin: Observed, last: str) -> Figure:
    figure, panels = new_figure(2)
    titled = (("backdoored model", victim, "C3"), ("clean twin", twin, "C0"))
    for axes, (name, run, colour) in zip(panels, titled, strict=True):
        x, y = run.by_clean[last].tolist(), run.by_other[last].tolist()
        correlation = run.agreement.by_layer[last][0]
        told = "undefined" if correlation is None else f"{correlation:.2f}"
        axes.scatter(x, y, s=14, alpha=0.6, color=colour, linewidths=0)
        axes.set_title(f"{name}: r = {told} ({len(x)} neurons)", fontsize=10)
        axes.set_ylabel("change, triggered unlearned")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    panels[-1].set_xlabel("change, clean unlearned")
    return figure


def _by_layer(agreements: Mapping[str, Agreement]) -> Figure:
    figure, (axes,) = new_figure()
    styles = {
        "victim": ("backdoored model", "C3", "o-"),
        "twin": ("clean twin", "C0", "s--"),
        "random": ("random labels", "0.5", "^:"),
    }
    for name, (label, colour, style) in styles.items():
        heights = [
            float("nan") if pair[0] is None else pair[0]
            for pair in agreements[name].by_layer.values()
        ]
        axes.plot(range(1, len(heights) + 1), heights, style, color=colour, label=label, ms=5)
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel("layer, from the input")
    axes.set_ylabel("Pearson's r of weight changes")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    return figure
