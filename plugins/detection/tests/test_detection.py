"""Rates counted by hand; intervals against numbers known otherwise."""

from __future__ import annotations

import pytest
import torch

from backdoorkit import Kind
from backdoorkit.api import ContractError, DetectionScores
from backdoorkit.hooks.registry import load_registry
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit_detection import DetectionConfig
from backdoorkit_detection._intervals import (
    bootstrap,
    delong,
    newcombe,
    order_statistics,
    wilson,
)
from backdoorkit_detection._metric import DetectionQuality


def rate(scores, positive, *, of="models", flagged=None, covers=None, named=None, **options):
    def truth(values):
        return None if values is None else torch.tensor(values, dtype=torch.bool)

    given = DetectionScores(
        of=of,
        scores=torch.tensor(scores).double(),
        positive=truth(positive),
        flagged=truth(flagged),
        covers=truth(covers),
        named=truth(named),
    )
    return DetectionQuality(DetectionConfig(**options)).rate(given)


def counts(value):
    return value.numerator, value.denominator


# -- columns ---------------------------------------------------------------------------------------


def test_models_are_counted_above_and_below():
    found = rate([5, 4, 1, 2, 3], [1, 1, 1, 0, 0], flagged=[1, 1, 0, 0, 1], named=[1, 0, 1, 0, 0])
    assert found["AUROC"].value == 4 / 6
    assert counts(found["TPR"]) == (2, 3)
    assert counts(found["FPR"]) == (1, 2)
    assert counts(found["target named"]) == (1, 2)  # of the flagged ones
    assert "precision" not in found


def test_samples_also_have_a_precision_and_covers_a_rate_of_their_own():
    found = rate(
        [9, 8, 7, 6, 5, 4],
        [1, 1, 0, 0, 0, 0],
        of="training samples",
        flagged=[1, 0, 1, 1, 0, 0],
        covers=[0, 0, 1, 1, 0, 0],
    )
    assert counts(found["precision"]) == (1, 3)
    assert counts(found["FPR"]) == (2, 4)  # covers are no poison
    assert counts(found["cover FPR"]) == (2, 2)


def test_the_threshold_lets_the_allowed_share_of_clean_ones_pass():
    clean, attacked = list(range(100)), [94.5, 95, 96, 200]
    found = rate(clean + attacked, [0] * 100 + [1] * 4, of="inputs")
    assert found["threshold"].value == 94  # five of a hundred are above it
    assert counts(found["TPR at 5 % FPR"]) == (4, 4)
    stricter = rate(clean + attacked, [0] * 100 + [1] * 4, of="inputs", false_positives=0.04)
    assert stricter["threshold"].value == 95
    assert counts(stricter["TPR at 4 % FPR"]) == (2, 4)


def test_of_few_clean_models_the_largest_score_is_the_threshold():
    found = rate([1, 2, 3, 4], [0, 0, 0, 1])
    assert found["threshold"].value == 3
    # Fewer than two of three lie below a 95 % quantile in 0.7 % of all cases; all three often do.
    assert found["threshold"].interval == (2, None)


def test_without_a_rule_of_the_detector_there_are_no_rates_of_it():
    assert {"TPR", "FPR"}.isdisjoint(rate([1, 2], [0, 1]))


def test_one_group_alone():
    only_clean = rate([1, 2], [0, 0], flagged=[0, 1])
    assert only_clean["AUROC"].value is None
    assert only_clean["TPR"].value is None
    assert counts(only_clean["FPR"]) == (1, 2)
    only_attacked = rate([1, 2], [1, 1], flagged=[0, 1])
    assert only_attacked["threshold"].value is None


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ContractError, match=r"flagged of shape \(2,\), got \(1,\)"):
        rate([1, 2], [0, 1], flagged=[1])


# -- intervals -------------------------------------------------------------------------------------


def test_wilson():
    # Agresti and Coull's example: 0 of 10, and 5 of 10
    assert wilson(0, 10, 0.95) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(5, 10, 0.95) == pytest.approx((0.23659, 0.76341), abs=1e-5)


def test_newcombe_solves_its_equation_and_is_no_point_where_all_is_told_apart():
    low, high = newcombe(1.0, 3, 3, 0.95)
    assert high == 1
    assert 0.3 < low < 0.8
    low, high = newcombe(0.8, 10, 20, 0.95)
    for theta in (low, high):
        spread = 1 + 14 * (1 - theta) / (2 - theta) + 14 * theta / (1 + theta)
        variance = theta * (1 - theta) / 200 * spread
        assert abs(0.8 - theta) == pytest.approx(1.959964 * variance**0.5, abs=1e-5)
    assert low < 0.8 < high
    more = newcombe(0.8, 1000, 2000, 0.95)
    assert more[1] - more[0] < (high - low) / 5


def test_delong_by_hand():
    # Placements: of 3 and 1 among (0, 2) 1 and 1/2; of 0 and 2 below (3, 1) 1 and 1/2.
    low, high = delong(torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0]), 0.95)
    half = 1.959964 * (0.125 / 2 + 0.125 / 2) ** 0.5
    assert (low, high) == (pytest.approx(0.75 - half), 1.0)


def test_bootstrap_is_repeatable_and_about_delongs():
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(60, generator=generator).double() + 1
    down = torch.randn(80, generator=generator).double()
    first = bootstrap(up, down, 0.95, 300)
    assert first == bootstrap(up, down, 0.95, 300)
    assert first == pytest.approx(delong(up, down, 0.95), abs=0.03)


@pytest.mark.parametrize("interval", ["newcombe", "delong", "bootstrap"])
def test_any_interval_holds_the_area(interval):
    found = rate([1, 4, 2, 5, 3, 6], [0, 0, 0, 1, 1, 1], interval=interval, resamples=100)
    low, high = found["AUROC"].interval
    assert 0 <= low <= found["AUROC"].value <= high <= 1


def test_the_median_of_ten_lies_between_the_second_and_the_ninth():
    # P(at most 1 of 10 below the median) = 11/1024 on either side: 97.9 % between.
    values = torch.arange(10.0)
    assert order_statistics(values, 0.5, 0.95) == (1.0, 8.0)


def test_too_few_values_do_not_bound_a_high_quantile():
    assert order_statistics(torch.arange(20.0), 0.95, 0.95)[1] is None
    low, high = order_statistics(torch.arange(200.0), 0.95, 0.95)
    assert 180 <= low < 190 < high < 199


# -- recipes ---------------------------------------------------------------------------------------


def test_a_recipe_with_detectors_gets_it_and_another_does_not():
    registry = load_registry()
    detector = next(iter(registry.methods(Kind.DETECTOR))).name
    attacks = [{"name": "none"}]
    asked = Recipe.from_mapping({"attacks": attacks, "detectors": [{"name": detector}]}, registry)
    assert [metric.name for metric in asked.metrics][-1] == "detection"
    plain = Recipe.from_mapping({"attacks": attacks}, registry)
    assert "detection" not in [metric.name for metric in plain.metrics]
