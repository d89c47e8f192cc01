"""What each metric counts, on predictions made by hand."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch.nn.functional import one_hot

from backdoorkit.api import ContractError, Evaluation, Predictions
from backdoorkit_metrics import (
    AccuracyConfig,
    AttackSuccessConfig,
    CoverAccuracyConfig,
    DefenseEffectivenessConfig,
    RobustAccuracyConfig,
)
from backdoorkit_metrics._metrics import (
    Accuracy,
    AttackSuccessRate,
    CoverAccuracy,
    DefenseEffectivenessRating,
    RobustAccuracy,
)

CLASSES = 4


def predictions(predicted, labels, targets=None, ids=None):
    """Predictions whose largest logit is at ``predicted``."""
    return Predictions(
        logits=one_hot(torch.tensor(predicted), CLASSES).float(),
        labels=torch.tensor(labels),
        ids=torch.arange(len(labels)) if ids is None else torch.tensor(ids),
        targets=None if targets is None else torch.tensor(targets),
    )


def all_to_one(clean, triggered, labels, baseline=None, target=0):
    return Evaluation(
        num_classes=CLASSES,
        clean=predictions(clean, labels),
        triggered=predictions(triggered, labels, [target] * len(labels)),
        label_map="all-to-one",
        target=target,
        baseline=baseline,
    )


def asr(evaluation, rule="non-target"):
    return AttackSuccessRate(AttackSuccessConfig(rule=rule)).compute(evaluation)["ASR"]


def ra(evaluation, rule="non-target"):
    return RobustAccuracy(RobustAccuracyConfig(rule=rule)).compute(evaluation)["RA"]


def acc(evaluation, rule="all"):
    return Accuracy(AccuracyConfig(rule=rule)).compute(evaluation)["ACC"]


def der(evaluation, **rules):
    config = DefenseEffectivenessConfig(**rules)
    return DefenseEffectivenessRating(config).compute(evaluation)["DER"]


def counts(metric):
    return metric.numerator, metric.denominator


LABELS = [0, 0, 1, 1, 2, 2, 3, 3]
CLEAN = [0, 1, 1, 1, 2, 0, 3, 3]  # wrong: one of class 0; one of class 2, taken for the target
TRIGGERED = [0, 1, 0, 0, 0, 0, 3, 2]
HAND_MADE = all_to_one(CLEAN, TRIGGERED, LABELS)


@pytest.mark.parametrize(("rule", "expected"), [("all", (6, 8)), ("non-target", (5, 6))])
def test_accuracy_counts_by_its_rule(rule, expected):
    metric = acc(HAND_MADE, rule)
    assert counts(metric) == expected
    assert metric.value == expected[0] / expected[1]
    assert metric.rule == rule


@pytest.mark.parametrize(
    ("rule", "success", "robust"),
    [
        pytest.param("non-target", (4, 6), (1, 6), id="without the two images of class 0"),
        pytest.param("all", (5, 8), (2, 8), id="every image"),
        pytest.param("conditional", (3, 6), (1, 6), id="without those already predicted as 0"),
    ],
)
def test_success_and_robust_accuracy_count_the_same_images(rule, success, robust):
    assert counts(asr(HAND_MADE, rule)) == success
    assert counts(ra(HAND_MADE, rule)) == robust
    assert asr(HAND_MADE, rule).rule == ra(HAND_MADE, rule).rule == rule


def test_counting_the_target_class_mixes_its_accuracy_into_the_success_rate():
    share = 2 / 8  # of the target class
    own = 1 / 2  # of its triggered images, predicted as the target
    expected = (1 - share) * asr(HAND_MADE).value + share * own
    assert asr(HAND_MADE, "all").value == pytest.approx(expected)


def test_an_all_to_all_map_leaves_no_image_out():
    labels = [0, 1, 2, 3]
    wanted = [1, 2, 3, 0]
    evaluation = Evaluation(
        num_classes=CLASSES,
        clean=predictions(labels, labels),
        triggered=predictions([1, 2, 2, 3], labels, wanted),
        label_map="all-to-all",
    )
    assert counts(asr(evaluation)) == (2, 4)
    assert counts(ra(evaluation)) == (2, 4)
    assert counts(acc(evaluation, "non-target")) == (4, 4)
    assert acc(evaluation, "non-target").rule == "all"


def test_a_model_that_always_says_the_target_has_full_success_and_no_robust_accuracy():
    evaluation = all_to_one([0] * 8, [0] * 8, LABELS)
    assert asr(evaluation).value == 1
    assert ra(evaluation).value == 0


def test_an_oracle_that_ignores_the_trigger_has_no_success_and_full_robust_accuracy():
    evaluation = all_to_one(LABELS, LABELS, LABELS)
    assert asr(evaluation).value == 0
    assert ra(evaluation).value == 1


def test_success_and_robust_accuracy_sum_to_at_most_one():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        labels, clean, triggered = torch.randint(CLASSES, (3, 30), generator=generator).tolist()
        evaluation = all_to_one(clean, triggered, labels)
        neither = [p not in (0, y) for p, y in zip(triggered, labels, strict=True) if y != 0]
        rest = sum(neither) / len(neither)
        assert asr(evaluation).value + ra(evaluation).value == pytest.approx(1 - rest)


def test_a_random_model_succeeds_on_one_image_in_every_class_count():
    generator = torch.Generator().manual_seed(1)
    labels, predicted = torch.randint(CLASSES, (2, 4000), generator=generator).tolist()
    evaluation = all_to_one(predicted, predicted, labels)
    assert asr(evaluation).value == pytest.approx(1 / CLASSES, abs=0.03)


def test_rating_uses_unrounded_rates_of_both_models():
    after = all_to_one(
        [1, 1, 1, 1, 2, 0, 3, 3], [0, 1, 1, 1, 2, 0, 3, 3], LABELS, baseline=HAND_MADE
    )
    # ASR 4/6 -> 1/6, ACC 6/8 -> 5/8
    assert der(after).value == pytest.approx((3 / 6 - 1 / 8 + 1) / 2, abs=1e-12)
    assert der(after).rule == "ACC all, ASR non-target"


def test_rating_follows_its_rules():
    after = all_to_one(
        [1, 1, 1, 1, 2, 0, 3, 3], [0, 1, 1, 1, 2, 0, 3, 3], LABELS, baseline=HAND_MADE
    )
    # ASR 5/8 -> 2/8 over all images, ACC 5/6 -> 5/6 without class 0
    value = der(after, accuracy_rule="non-target", attack_rule="all").value
    assert value == pytest.approx((3 / 8 + 1) / 2, abs=1e-12)


def test_rating_is_undefined_without_a_baseline():
    assert der(HAND_MADE).value is None


def test_without_a_trigger_only_accuracy_is_defined():
    clean = Evaluation(num_classes=CLASSES, clean=predictions(CLEAN, LABELS))
    repaired = Evaluation(num_classes=CLASSES, clean=predictions(CLEAN, LABELS), baseline=clean)
    assert counts(acc(repaired)) == (6, 8)
    assert [metric(repaired).value for metric in (asr, ra, der)] == [None, None, None]


def test_rates_over_no_image_are_undefined():
    evaluation = all_to_one([0, 0], [0, 0], [0, 0])
    assert asr(evaluation).value is None
    assert counts(asr(evaluation)) == (0, 0)


def test_the_conditional_rule_refuses_images_that_do_not_match():
    evaluation = Evaluation(
        num_classes=CLASSES,
        clean=predictions([0, 1], [0, 1], ids=[0, 1]),
        triggered=predictions([0, 1], [0, 1], [0, 0], ids=[1, 0]),
        target=0,
    )
    with pytest.raises(ContractError, match="do not match"):
        asr(evaluation, "conditional")


# -- images that are not attacked, covers, several attacks in one ----------------------------------


def targeted(clean, triggered, labels, wanted, **more):
    return Evaluation(
        num_classes=CLASSES,
        clean=predictions(clean, labels),
        triggered=predictions(triggered, labels, wanted, **more),
    )


@pytest.mark.parametrize(
    ("rule", "success", "robust"),
    [
        pytest.param("non-target", (1, 2), (1, 2), id="attacked and of another class"),
        pytest.param("all", (2, 3), (2, 3), id="attacked"),
        pytest.param("conditional", (1, 2), (1, 2), id="attacked and not yet obeying"),
    ],
)
def test_images_that_are_not_attacked_count_by_no_rule(rule, success, robust):
    labels = [0, 1, 1, 2, 3]
    evaluation = targeted([0, 1, 1, 2, 3], [0, 0, 1, 0, 0], labels, [0, 0, 0, -1, -1])
    assert counts(asr(evaluation, rule)) == success
    assert counts(ra(evaluation, rule)) == robust


def test_without_any_attacked_image_the_rates_are_undefined():
    evaluation = targeted([1, 2], [0, 0], [1, 2], [-1, -1])
    assert asr(evaluation).value is None
    assert ra(evaluation).value is None


def test_each_part_of_a_composed_attack_has_a_rate_of_its_own():
    labels = [0, 1, 2, 3]
    triggered = predictions(
        [0, 0, 2, 0, 1, 1, 1, 1], labels * 2, [0] * 4 + [1] * 4, ids=[*range(4)] * 2
    )
    triggered = attrs.evolve(triggered, parts=torch.tensor([0] * 4 + [1] * 4))
    evaluation = Evaluation(
        num_classes=CLASSES,
        clean=predictions([0, 0, 2, 3], labels),
        triggered=triggered,
        part_names=("patch", "noise"),
    )
    columns = AttackSuccessRate(AttackSuccessConfig()).compute(evaluation)
    assert {name: counts(value) for name, value in columns.items()} == {
        "ASR": (5, 6),
        "ASR patch": (2, 3),
        "ASR noise": (3, 3),
    }
    # One image obeys the first part without its trigger.
    assert counts(asr(evaluation, "conditional")) == (5, 6)


def test_covers_are_right_where_they_keep_their_class():
    metric = CoverAccuracy(CoverAccuracyConfig())
    covers = predictions([0, 1, 0, 3], [0, 1, 2, 3])
    value = metric.compute(attrs.evolve(HAND_MADE, covers=covers))["cover ACC"]
    assert counts(value) == (3, 4)
    assert metric.compute(HAND_MADE)["cover ACC"].value is None
