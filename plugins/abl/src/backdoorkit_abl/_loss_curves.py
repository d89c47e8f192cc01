"""How fast clean and backdoored samples are learned: the experiment that ABL starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import torch
from matplotlib.ticker import MaxNLocator

from backdoorkit.api import (
    Analysis,
    AnalysisResult,
    ContractError,
    SampleKind,
    area_under_curve,
    new_figure,
)
from backdoorkit_abl import LossCurvesConfig
from backdoorkit_abl._isolation import IsolationTraining, isolated_count, lowest, sample_losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from backdoorkit.api import AnalysisTask, Context, EpochMetrics, ImageSet

__all__ = ["EpochLosses", "LossCurves", "look"]

_GROUPS = {SampleKind.CLEAN: "clean", SampleKind.POISONED: "backdoored", SampleKind.COVER: "cover"}
_QUARTILES = (0.25, 0.5, 0.75)


@attrs.frozen(kw_only=True)
class EpochLosses:
    """What the losses of one epoch say."""

    #: mean, and lower quartile, median and upper quartile, of each kind of sample there is
    groups: dict[str, tuple[float, float, float, float]]
    #: how well losses tell backdoored samples (lower) from all others; None where either is missing
    auroc: float | None
    #: share of backdoored ones among the samples of lowest loss
    precision: float | None


def look(losses: Tensor, kinds: Tensor, count: int) -> EpochLosses:
    """The losses (float64, N) of samples of ``kinds`` (uint8, N), of which ``count`` are isolated.

    Covers count as not backdoored, as in the metric.
    """
    losses, poisoned = losses.cpu(), kinds == SampleKind.POISONED
    groups = {}
    for kind, name in _GROUPS.items():
        own = losses[kinds == kind]
        if len(own):
            quartiles = own.quantile(torch.tensor(_QUARTILES, dtype=own.dtype)).tolist()
            groups[name] = (float(own.mean()), *quartiles)
    isolated = poisoned[lowest(losses, count)]
    return EpochLosses(
        groups=groups,
        auroc=area_under_curve(-losses[poisoned], -losses[~poisoned]),
        precision=float(isolated.double().mean()) if poisoned.any() else None,
    )


class _Watched(IsolationTraining):
    """Training as in ABL's stage 1, with a look at every sample's loss after each epoch."""

    def __init__(
        self, config: LossCurvesConfig, data: ImageSet, kinds: Tensor, context: Context
    ) -> None:
        super().__init__(config)
        self._data = data
        self._kinds = kinds
        self._count = isolated_count(len(data), config.isolation_rate)
        self._context = context
        self.losses: Tensor | None = None
        self.history: list[EpochLosses] = []

    def after_epoch(self, model: nn.Module, epoch: int, metrics: EpochMetrics) -> bool:
        self.losses = sample_losses(model, self._data, self._context).cpu()
        self.history.append(look(self.losses, self._kinds, self._count))
        return False


class LossCurves(Analysis[LossCurvesConfig]):
    """Trains a fresh model on the poisoned set and follows the loss of every sample.

    The losses are those that ABL ranks by: of the model after the epoch, in eval mode, on the
    images as they are.
    """

    def run(self, task: AnalysisTask, context: Context) -> AnalysisResult:
        data, kinds = task.training_data, task.kinds.cpu()
        if len(kinds) != len(data):
            raise ContractError(
                f"expected a kind for each of {len(data)} training samples, got {len(kinds)}"
            )
        watched = _Watched(self.config, data, kinds, context)
        context.fit(task.build_model(), data, self.config, hooks=watched)
        history = watched.history
        assert watched.losses is not None
        return AnalysisResult(
            values=_values(history),
            details={
                "samples": {name: int((kinds == kind).sum()) for kind, name in _GROUPS.items()},
                "epochs": [attrs.asdict(epoch) for epoch in history],
            },
            tensors={"losses": watched.losses, "kinds": kinds},
            figures={"loss-curves": _curves(history, self.config.isolation_rate)},
            captions={
                "loss-curves": "Training loss on clean and backdoored samples: mean (line) and "
                "quartiles (band). Below, how well the losses of an epoch tell the backdoored "
                f"ones: the area under the curve, and the share among the "
                f"{100 * self.config.isolation_rate:g} % of lowest loss.",
            },
        )


def _values(history: Sequence[EpochLosses]) -> dict[str, float | None]:
    last = history[-1]
    areas = [epoch.auroc for epoch in history if epoch.auroc is not None]
    shares = [epoch.precision for epoch in history if epoch.precision is not None]
    return {
        "clean loss": last.groups["clean"][0] if "clean" in last.groups else None,
        "backdoored loss": last.groups["backdoored"][0] if "backdoored" in last.groups else None,
        "first AUROC": history[0].auroc,
        "best AUROC": max(areas, default=None),
        "last AUROC": last.auroc,
        "first precision": history[0].precision,
        "best precision": max(shares, default=None),
        "last precision": last.precision,
    }


def _curves(history: Sequence[EpochLosses], rate: float) -> Figure:
    figure, (above, below) = new_figure(2)
    epochs = range(1, len(history) + 1)
    colours = {"clean": "C0", "backdoored": "C3", "cover": "C2"}
    for name in history[0].groups:
        mean, lower, _, upper = zip(*(epoch.groups[name] for epoch in history), strict=True)
        above.plot(epochs, mean, "o-", color=colours[name], ms=3, label=name)
        above.fill_between(epochs, lower, upper, color=colours[name], alpha=0.2, linewidth=0)
    above.set_ylabel("training loss")
    above.set_ylim(bottom=0)
    told: dict[str, tuple[list[Any], str]] = {
        "AUROC": ([epoch.auroc for epoch in history], "ko-"),
        f"precision at {100 * rate:g} %": ([epoch.precision for epoch in history], "C1s--"),
    }
    for label, (heights, style) in told.items():
        drawn = [float("nan") if height is None else height for height in heights]
        below.plot(epochs, drawn, style, ms=3, label=label)
    below.set_ylim(-0.03, 1.03)
    below.set_ylabel("backdoored below others")
    below.set_xlabel("epoch")
    for axes in (above, below):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=9)
    return figure
