"""Isolation precision, recall and AUROC against answers known by hand."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.api import ContractError, Evaluation, Predictions
from backdoorkit.evaluation import PoisonRecord
from backdoorkit_abl import IsolationConfig
from backdoorkit_abl._metric import IsolationPrecision

#: 4 poisoned, 1 cover
KINDS = [1, 0, 0, 1, 2, 1, 0, 1, 0, 0]


def compute(outputs, kinds=KINDS, rate=None):
    clean = Predictions(
        logits=torch.zeros(2, 3), labels=torch.tensor([0, 1]), ids=torch.tensor([0, 1])
    )
    record = None if kinds is None else PoisonRecord(kinds=torch.tensor(kinds, dtype=torch.uint8))
    evaluation = Evaluation(num_classes=3, clean=clean, poison=record, outputs=outputs)
    columns = IsolationPrecision(IsolationConfig(rate=rate)).compute(evaluation)
    names = ["precision", "recall", "AUROC"]
    if rate is not None:
        names.append(f"precision (lowest {100 * rate:g} %)")
    assert list(columns) == [f"isolation {name}" for name in names]
    return list(columns.values())


def outputs(isolated, losses=None):
    losses = torch.arange(10.0) if losses is None else torch.tensor(losses)
    return {"isolated": torch.tensor(isolated, dtype=torch.int64), "losses": losses}


def test_counted_among_the_isolated_and_among_the_poisoned():
    precision, recall, _ = compute(outputs([0, 1, 3, 4, 5]))
    assert (precision.numerator, precision.denominator) == (3, 5)
    assert precision.value == 0.6
    assert (recall.numerator, recall.denominator) == (3, 4)
    assert recall.value == 0.75


def test_all_isolated_has_the_precision_of_chance():
    precision, recall, _ = compute(outputs(list(range(10))))
    assert (precision.value, recall.value) == (0.4, 1.0)


def test_separated_losses_give_full_precision_and_area():
    losses = [0.0 if kind == 1 else 1.0 for kind in KINDS]
    precision, recall, area = compute(outputs([0, 3], losses))
    assert (precision.value, recall.value, area.value) == (1.0, 0.5, 1.0)
    assert compute(outputs([0, 3], [-loss for loss in losses]))[2].value == 0.0


def test_precision_of_another_rate_is_that_of_as_many_lowest_losses():
    losses = [0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0]
    *_, at = compute(outputs([0], losses), rate=0.3)
    assert (at.numerator, at.denominator, at.value) == (1, 3, 1 / 3)  # positions 1, 2 and 3
    assert compute(outputs([0], losses), rate=0.05)[3].value is None  # less than one sample
    assert compute({}, rate=0.3)[3].value is None


def test_equal_losses_count_half():
    assert compute(outputs([0], [0.5] * 10))[2].value == 0.5


@pytest.mark.parametrize(
    ("kept", "kinds"), [({}, KINDS), (outputs([0]), None)], ids=["nothing kept", "no record"]
)
def test_undefined_where_something_is_missing(kept, kinds):
    assert [value.value for value in compute(kept, kinds)] == [None, None, None]


def test_without_poison_recall_and_area_are_undefined():
    precision, recall, area = compute(outputs([0, 1]), [0] * 10)
    assert (precision.value, recall.value, area.value) == (0.0, None, None)


def test_positions_of_another_training_set_are_refused():
    with pytest.raises(ContractError, match="positions below 10"):
        compute(outputs([12]))
    with pytest.raises(ContractError, match="a loss for each of 10"):
        compute({"losses": torch.zeros(3)})
