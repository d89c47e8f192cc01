"""Outliers among logarithms of norms: hand-computed residuals, hidden targets, false alarms."""

from __future__ import annotations

import math

import pytest
import torch

from backdoorkit_nc import InversionOptions
from backdoorkit_nc._anomaly import family_wise_threshold, p_value
from backdoorkit_nc._log_sizes import log_size_indices, null_scores
from backdoorkit_nc._verdict import judge

LOG_SIZES = InversionOptions(outliers="log-sizes")


def indices(*norms):
    return log_size_indices(torch.tensor(norms, dtype=torch.float64))


def test_the_smallest_is_measured_by_mean_and_deviation_of_the_others():
    # Logarithms of the others: 2, 4 and 6 with mean 4 and deviation 2; the smallest has 1.
    found = indices(math.e**4, math.e, math.e**6, math.e**2)
    assert found.tolist() == pytest.approx([0, 1.5, 0, 0])


def test_a_factor_on_all_norms_changes_nothing():
    norms = torch.tensor([4.7, 12.2, 14.9, 19.0, 20.3, 21.2, 23.7, 26.7, 27.2, 31.0])
    assert torch.allclose(log_size_indices(norms), log_size_indices(100 * norms))


def test_norms_that_scatter_hide_the_target_from_deviations_and_not_from_logarithms(triggers):
    # Reversed by this plugin from a published backdoored network of target 2.
    norms = [14.9, 12.2, 4.7, 21.2, 20.3, 31.0, 27.2, 26.7, 19.0, 23.7]
    assert judge(triggers(norms), InversionOptions()).flagged == ()
    verdict = judge(triggers(norms), LOG_SIZES)
    assert verdict.flagged == (2,)
    assert verdict.details()["p_value"] < 0.03


def test_two_targets_do_not_hide_each_other(triggers):
    norms = [4.5, 22.0, 4.6, 24.0, 18.0, 20.0, 26.0, 19.0, 21.0, 23.0]
    verdict = judge(triggers(norms), LOG_SIZES)
    assert set(verdict.flagged) == {0, 2}


def test_equal_norms_flag_nothing(triggers):
    verdict = judge(triggers([7.0] * 10), LOG_SIZES)
    assert (verdict.score, verdict.flagged) == (0.0, ())
    assert judge(triggers([0.0] * 10), LOG_SIZES).score == 0.0


def test_a_trigger_that_never_worked_is_not_flagged(triggers):
    norms = [1.0, *[20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0, 28.0]]
    verdict = judge(triggers(norms, torch.arange(10) != 0), LOG_SIZES)
    assert verdict.flagged == ()


@pytest.mark.parametrize("classes", [5, 10, 43])
def test_clean_models_are_flagged_as_often_as_promised(classes):
    generator = torch.Generator().manual_seed(3)
    threshold = family_wise_threshold(null_scores(classes), 0.05)
    clean = (3 + 0.2 * torch.randn(2000, classes, generator=generator)).exp()
    scores = torch.stack([log_size_indices(norms).max() for norms in clean])
    assert float((scores > threshold).double().mean()) == pytest.approx(0.05, abs=0.015)


def test_one_residual_has_the_distribution_of_a_student():
    # Of five classes only the smallest is tested: five times the tail of t with three degrees of
    # freedom, 0.05 / 5 at 4.541, is the probability up to double counting.
    score = 4.541 * math.sqrt(1 + 1 / 4)
    assert p_value(score, null_scores(5)) == pytest.approx(0.05, abs=0.003)
