"""Learning rates at each step against numbers worked out by hand."""

from __future__ import annotations

import pytest

from backdoorkit import TrainOptions
from backdoorkit.training import learning_rate_at


def rates(total, **options):
    chosen = TrainOptions(learning_rate=0.4, **options)
    return [learning_rate_at(chosen, step, total) for step in range(total)]


def test_constant_stays():
    assert rates(3, schedule="constant") == [0.4, 0.4, 0.4]


def test_cosine_falls_from_the_peak_towards_zero():
    assert rates(4, schedule="cosine") == pytest.approx([0.4, 0.34142136, 0.2, 0.05857864])


def test_one_cycle_rises_for_a_quarter_and_falls_to_the_end():
    expected = [0.2, 0.4, 1 / 3, 4 / 15, 0.2, 2 / 15, 1 / 15]
    assert rates(7, schedule="one-cycle") == pytest.approx(expected)


@pytest.mark.parametrize("total", [1, 2, 3, 100])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle", "step"])
def test_no_step_is_wasted_and_none_exceeds_the_peak(schedule, total):
    assert all(0 < rate <= 0.4 for rate in rates(total, schedule=schedule))


def test_step_divides_by_ten_at_every_milestone():
    expected = [0.4, 0.4, 0.04, 0.004]
    assert rates(4, schedule="step", milestones=(0.5, 0.75)) == pytest.approx(expected)


def test_milestones_need_no_order():
    ordered = rates(8, schedule="step", milestones=(0.25, 0.5))
    assert rates(8, schedule="step", milestones=(0.5, 0.25)) == ordered
