"""What metrics must keep, on predictions whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import torch

from backdoorkit.contracts import MetricValue
from backdoorkit.detection import DetectionScores
from backdoorkit.evaluation import Evaluation, PoisonRecord, Predictions
from backdoorkit.hooks.info import Need
from backdoorkit.testing._subject import (
    CheckSkippedError,
    Subject,
    require,
    require_untouched,
    watched_global_state,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["CHECKS"]

_CLASSES: Final = 4
_COUNT: Final = 40
_TARGET: Final = 1


def _labels() -> Tensor:
    return torch.arange(_COUNT) % _CLASSES


def _predictions(predicted: Tensor, targets: Tensor | None = None) -> Predictions:
    logits = torch.nn.functional.one_hot(predicted, _CLASSES).float() * 5
    return Predictions(logits=logits, labels=_labels(), ids=torch.arange(_COUNT), targets=targets)


def _evaluation(clean: Tensor, triggered: Tensor) -> Evaluation:
    targets = torch.full((_COUNT,), _TARGET)
    return Evaluation(
        num_classes=_CLASSES,
        clean=_predictions(clean),
        triggered=_predictions(triggered, targets),
        label_map="all-to-one",
        target=_TARGET,
    )


def backdoored() -> Evaluation:
    """A model that is right on all clean images and gives the target on all triggered ones."""
    return _evaluation(_labels(), torch.full((_COUNT,), _TARGET))


def repaired() -> Evaluation:
    """A model that is right on everything, after :func:`backdoored`."""
    return attrs.evolve(_evaluation(_labels(), _labels()), baseline=backdoored())


def _mixed() -> Evaluation:
    """A model that is wrong on every seventh clean and obeys on every third triggered image."""
    number = torch.arange(_COUNT)
    clean = torch.where(number % 7 == 0, (_labels() + 1) % _CLASSES, _labels())
    triggered = torch.where(number % 3 == 0, torch.full((_COUNT,), _TARGET), clean)
    kinds = (number % 10 == 0).to(torch.uint8)
    record = PoisonRecord(kinds=kinds, true_labels=_labels())
    return attrs.evolve(_evaluation(clean, triggered), baseline=backdoored(), poison=record)


#: Right answers by column name, for the columns whose meaning is settled.
_KNOWN: Final[Mapping[str, tuple[float, float]]] = {
    # column: (of `backdoored`, of `repaired`)
    "ACC": (1.0, 1.0),
    "ASR": (1.0, 0.0),
    "RA": (0.0, 1.0),
}


def values_are_well_formed(subject: Subject) -> None:
    """Columns by name, each a finite number or None, in agreement with what it was counted from."""
    columns: Mapping[Any, Any] = _compute(subject, _given(subject, _mixed()))
    require(len(columns) > 0, "there are no columns")
    for name, value in columns.items():
        require(isinstance(name, str) and name != "", f"column name {name!r}")
        require(isinstance(value, MetricValue), f"{name} is no MetricValue but {value!r}")
        if value.value is None:
            continue
        require(math.isfinite(value.value), f"{name} is {value.value!r}")
        if value.numerator is not None and value.denominator:
            share = value.numerator / value.denominator
            require(math.isclose(share, value.value), f"{name} is {value.value}, not {share}")


def known_models_get_their_known_values(subject: Subject) -> None:
    """ACC, ASR and RA of a fully backdoored and of a fully repaired model."""
    cases = (_given(subject, backdoored()), _given(subject, repaired()))
    for case, evaluation in enumerate(cases):
        for name, value in _compute(subject, evaluation).items():
            if name in _KNOWN:
                right = _KNOWN[name][case]
                require(value.value == right, f"{name} is {value.value!r} where {right} is right")


def order_of_samples_does_not_matter(subject: Subject) -> None:
    """The same samples in another order give the same values."""
    evaluation = _given(subject, _mixed())
    order = torch.randperm(_COUNT, generator=torch.Generator().manual_seed(5))
    first = _compute(subject, evaluation)
    second = _compute(subject, _reordered(evaluation, order))
    for name, value in first.items():
        other = second[name].value
        same = value.value == other or math.isclose(value.value or 0, other or 0, abs_tol=1e-9)
        require(same, f"{name} was {value.value}, in another order {other}")


def works_without_an_attack(subject: Subject) -> None:
    """With clean predictions alone it gives values or None, and does not fail."""
    evaluation = attrs.evolve(
        _mixed(), triggered=None, baseline=None, poison=None, target=None, label_map=None
    )
    for name, value in _compute(subject, evaluation).items():
        require(isinstance(value, MetricValue), f"{name} is no MetricValue but {value!r}")


def asks_only_for_what_it_declares(subject: Subject) -> None:
    """Given what ``needs`` declares and nothing else, it computes the same values."""
    everything = _compute(subject, _mixed())
    declared = _compute(subject, _given(subject, _mixed()))
    require(everything == declared, f"it gives {everything}, with what it declares {declared}")


def leaves_predictions_and_what_is_global_alone(subject: Subject) -> None:
    """Predictions are not written to; no global generator is used."""
    evaluation = _given(subject, _mixed())
    before = {name: value.clone() for name, value in evaluation.to_tensors().items()}
    with watched_global_state() as changed:
        first = _compute(subject, evaluation)
    require_untouched(changed)
    for name, value in evaluation.to_tensors().items():
        require(torch.equal(value, before[name]), f"it wrote into {name}")
    require(first == _compute(subject, evaluation), "a second computation gives other values")


def detectors_are_rated_by_how_they_rank(subject: Subject) -> None:
    """A metric of verdicts: AUROC of right, reversed and equal scores; none without both kinds."""
    if Need.VERDICTS not in subject.info.needs:
        raise CheckSkippedError("it rates no detectors")
    truth = torch.arange(_COUNT) % 4 == 0
    right = truth.double() + torch.arange(_COUNT) / 1000
    cases: tuple[tuple[Tensor, Tensor, float | None], ...] = (
        (right, truth, 1.0),
        (-right, truth, 0.0),
        (torch.zeros(_COUNT).double(), truth, 0.5),
        (right, torch.zeros(_COUNT).bool(), None),
    )
    with watched_global_state() as changed:
        for scores, positive, area in cases:
            for of in ("models", "training samples", "inputs"):
                given = DetectionScores(of=of, scores=scores, positive=positive, flagged=positive)
                rated: Mapping[str, MetricValue] = subject.create().rate(given)
                require(len(rated) > 0, "there are no columns")
                values = [v.value for v in rated.values() if v.value is not None]
                require(all(map(math.isfinite, values)), f"values are {values}")
                if "AUROC" in rated:
                    found = rated["AUROC"].value
                    require(found == area, f"AUROC is {found} where {area} is right")
    require_untouched(changed)


CHECKS: Final[tuple[Callable[[Subject], None], ...]] = (
    values_are_well_formed,
    known_models_get_their_known_values,
    order_of_samples_does_not_matter,
    works_without_an_attack,
    asks_only_for_what_it_declares,
    leaves_predictions_and_what_is_global_alone,
    detectors_are_rated_by_how_they_rank,
)


def _compute(subject: Subject, evaluation: Evaluation) -> Mapping[str, MetricValue]:
    if Need.VERDICTS in subject.info.needs:
        raise CheckSkippedError("it rates detectors, not models")
    columns: Mapping[str, MetricValue] = subject.create().compute(evaluation)
    require(isinstance(columns, Mapping), f"compute must return a mapping, not {columns!r}")
    return columns


def _given(subject: Subject, evaluation: Evaluation) -> Evaluation:
    """What is left of an evaluation for a metric with these needs."""
    needs = subject.info.needs
    return attrs.evolve(
        evaluation,
        baseline=evaluation.baseline if Need.BASELINE_PREDICTIONS in needs else None,
        poison=evaluation.poison if Need.POISON_RECORD in needs else None,
    )


def _reordered(evaluation: Evaluation, order: Tensor) -> Evaluation:
    def reorder(predictions: Predictions) -> Predictions:
        targets = predictions.targets
        return Predictions(
            logits=predictions.logits[order],
            labels=predictions.labels[order],
            ids=predictions.ids[order],
            targets=None if targets is None else targets[order],
        )

    clean, triggered = evaluation.clean, evaluation.triggered
    return attrs.evolve(
        evaluation,
        clean=reorder(clean),
        triggered=None if triggered is None else reorder(triggered),
    )
