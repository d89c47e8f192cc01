"""The anomaly index against numbers known from elsewhere, and the rate of false alarms."""

from __future__ import annotations

import pytest
import torch

from backdoorkit_nc import InversionOptions
from backdoorkit_nc._anomaly import anomaly, family_wise_threshold, null_indices, p_value
from backdoorkit_nc._verdict import judge


def indices(*norms):
    return anomaly(torch.tensor(norms)).indices


def test_the_number_in_the_released_example(triggers):
    middle, raw = 64.466667, 13.238736 / 1.4826
    norms = [middle, *[middle - raw] * 20, *[middle + raw] * 21]
    norms.insert(33, 16.117647)
    found = anomaly(torch.tensor(norms, dtype=torch.float64))
    assert found.median == pytest.approx(64.466667, abs=1e-5)
    assert found.deviation == pytest.approx(13.238736, abs=1e-5)
    assert float(found.indices[33]) == pytest.approx(3.652087, abs=1e-5)
    assert judge(triggers(norms), InversionOptions()).flagged == (33,)


def test_an_even_number_of_norms_has_the_mean_of_its_middle_pair_as_median():
    found = indices(10, 40, 42, 44, 50, 52, 54, 60, 64, 70)
    assert float(found[0]) == pytest.approx(3.073, abs=1e-3)  # the lower one would give 3.372


def test_only_small_norms_are_anomalous():
    found = indices(8, 9, 10, 11, 12, 2)
    assert float(found[5]) == pytest.approx(3.372, abs=1e-3)
    assert found[2:5].tolist() == [0, 0, 0]


def test_equal_norms_are_degenerate_and_flag_nothing(triggers):
    found = anomaly(torch.full((10,), 7.0))
    assert found.is_degenerate
    assert found.indices.tolist() == [0.0] * 10
    assert judge(triggers([7.0] * 10), InversionOptions()).flagged == ()
    assert anomaly(torch.zeros(10)).indices.tolist() == [0.0] * 10


def test_one_outlier_among_equal_norms_has_a_finite_index():
    found = anomaly(torch.tensor([1.0, *[10.0] * 9]))
    assert found.is_degenerate
    assert float(found.indices[0]) == pytest.approx(9 / 0.2)


def test_of_two_norms_neither_is_ever_an_outlier():
    for other in (1.001, 2.0, 1e9):
        assert float(indices(1.0, other).max()) <= 1 / 1.4826 + 1e-9


def test_a_trigger_that_never_worked_is_not_flagged(triggers):
    norms = [1.0, *[20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0, 28.0]]
    assert judge(triggers(norms), InversionOptions()).flagged == (0,)
    converged = torch.arange(10) != 0
    verdict = judge(triggers(norms, converged), InversionOptions())
    assert verdict.flagged == ()
    assert verdict.score < 2
    assert verdict.details()["not_converged"] == [0]


def test_flagged_classes_come_with_the_most_anomalous_first(triggers):
    norms = [20.0, 3.0, 21.0, 22.0, 1.0, 23.0, 24.0, 20.5, 21.5, 22.5]
    assert judge(triggers(norms), InversionOptions()).flagged == (4, 1)


# -- chance ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "flagged_at_two", "threshold"),
    [(10, 0.33, 3.89), (43, 0.64, 3.48), (100, 0.88, 3.50)],
)
def test_clean_models_are_often_flagged_at_two(classes, flagged_at_two, threshold):
    assert p_value(2.0, null_indices(classes)) == pytest.approx(flagged_at_two, abs=0.015)
    assert family_wise_threshold(null_indices(classes), 0.05) == pytest.approx(threshold, abs=0.05)


def test_chance_is_that_of_the_index_itself():
    generator = torch.Generator().manual_seed(5)
    drawn = [
        anomaly(50 + 10 * torch.randn(10, generator=generator)).indices.max() for _ in range(1000)
    ]
    rate = float((torch.stack(drawn) > 2).double().mean())
    assert rate == pytest.approx(p_value(2.0, null_indices(10)), abs=0.05)


def test_a_probability_is_never_zero():
    assert 0 < p_value(1e9, null_indices(10)) < 1e-4
    assert len(null_indices(10)) >= 10_000


def test_the_family_wise_rule_flags_less(triggers):
    norms = [12.0, 20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0, 28.0]
    fixed = judge(triggers(norms), InversionOptions())
    calibrated = judge(triggers(norms), InversionOptions(threshold_rule="family-wise"))
    assert fixed.flagged == (0,)
    assert calibrated.score == fixed.score
    assert calibrated.threshold == pytest.approx(3.89, abs=0.05)
    assert 2 < fixed.score < calibrated.threshold
    assert calibrated.flagged == ()
    assert 0.05 < fixed.details()["p_value"] < 0.33
