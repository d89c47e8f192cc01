"""How well a defense isolated the poisoned training samples: what it kept against the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from backdoorkit.api import ContractError, Metric, MetricValue, SampleKind, area_under_curve
from backdoorkit_abl import IsolationConfig
from backdoorkit_abl._isolation import lowest, share_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from backdoorkit.api import Evaluation

__all__ = ["IsolationPrecision"]

_PRECISION, _RECALL, _AREA = "isolation precision", "isolation recall", "isolation AUROC"


class IsolationPrecision(Metric[IsolationConfig]):
    """Looks at ``outputs["isolated"]``, positions in the training set, and ``["losses"]``.

    Any defense that keeps these is rated. Covers (triggered, with their true label) count as clean.
    """

    def compute(self, evaluation: Evaluation) -> Mapping[str, MetricValue]:
        """Three columns, and one more with ``rate``.

        Undefined for what isolates nothing, and where nothing was poisoned.
        """
        outputs, record = evaluation.outputs, evaluation.poison
        isolated, losses = outputs.get("isolated"), outputs.get("losses")
        if record is None:
            isolated = losses = None
        poisoned = torch.zeros(0) if record is None else record.kinds == SampleKind.POISONED
        values = {
            **_shares(isolated, poisoned),
            _AREA: MetricValue(
                value=None if losses is None else _area(losses, poisoned),
                rule="poisoned below others by loss",
            ),
        }
        rate = self.config.rate
        if rate is not None:
            column = f"{_PRECISION} (lowest {100 * rate:g} %)"
            values[column] = _precision_at(losses, poisoned, rate)
        return values


def _shares(isolated: Tensor | None, poisoned: Tensor) -> dict[str, MetricValue]:
    rules = {_PRECISION: "isolated samples", _RECALL: "poisoned samples"}
    if isolated is None:
        return {column: MetricValue(value=None, rule=rule) for column, rule in rules.items()}
    if len(isolated) and int(isolated.max()) >= len(poisoned):
        raise ContractError(
            f"expected isolated positions below {len(poisoned)}, the number of training samples, "
            f"got {int(isolated.max())}"
        )
    hits = int(poisoned[isolated].sum())
    sizes = {_PRECISION: len(isolated), _RECALL: int(poisoned.sum())}
    return {
        column: MetricValue(
            value=hits / size if size else None,
            numerator=hits,
            denominator=size,
            rule=rules[column],
        )
        for column, size in sizes.items()
    }


def _precision_at(losses: Tensor | None, poisoned: Tensor, rate: float) -> MetricValue:
    """Of the ``rate`` of lowest loss; undefined where that is less than one sample."""
    rule = "samples of lowest loss"
    count = 0 if losses is None else share_count(len(losses), rate)
    if losses is None or not count:
        return MetricValue(value=None, rule=rule)
    hits = int(poisoned[lowest(losses, count)].sum())
    return MetricValue(value=hits / count, numerator=hits, denominator=count, rule=rule)


def _area(losses: Tensor, poisoned: Tensor) -> float | None:
    if len(losses) != len(poisoned):
        raise ContractError(
            f"expected a loss for each of {len(poisoned)} training samples, got {len(losses)}"
        )
    return area_under_curve(-losses[poisoned], -losses[~poisoned])
