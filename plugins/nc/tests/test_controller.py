"""The controller of the norm's weight, fed with scripted successes."""

from __future__ import annotations

import math

import pytest
import torch

from backdoorkit_nc import InversionOptions
from backdoorkit_nc._controller import ControllerState, advance

CPU = torch.device("cpu")


def trace(successes, norms=None, **options):
    """λ after every step of one class, and the step in which it finished (None if never)."""
    options = InversionOptions(**options)
    state, finished_in = ControllerState.start(1, options, CPU), None
    penalties = []
    for step, success in enumerate(successes):
        norm = torch.tensor([100.0 if norms is None else norms[step]])
        state, _, finished = advance(state, torch.tensor([success]), norm, options)
        penalties.append(float(state.penalty))
        if bool(finished) and finished_in is None:
            finished_in = step
    return penalties, finished_in


def test_the_weight_begins_after_five_successes_and_doubles_after_four_more():
    penalties, _ = trace([1.0] * 15)
    # The step that sets λ counts as the first of the five that raise it.
    expected = [0.0] * 4 + [1e-3] * 4 + [2e-3] * 5 + [4e-3] * 2
    assert penalties == pytest.approx(expected)


def test_five_failures_divide_it_by_the_factor_to_the_power_three_halves():
    penalties, _ = trace([1.0] * 5 + [0.0] * 10)
    assert penalties[8] == pytest.approx(1e-3)
    assert penalties[9] == pytest.approx(1e-3 / 2**1.5)
    assert penalties[14] == pytest.approx(1e-3 / 8)


def test_a_failure_in_between_starts_the_count_anew():
    assert trace([1.0] * 4 + [0.0] + [1.0] * 4)[0] == [0.0] * 9


def test_success_at_the_threshold_is_enough():
    assert trace([0.99] * 5)[0][-1] > 0
    assert trace([0.98] * 5)[0][-1] == 0


def test_the_weight_may_begin_at_once():
    penalties, _ = trace([1.0] * 5, penalty_start="at-once")
    assert penalties == pytest.approx([1e-3] * 4 + [2e-3])


def test_a_class_finishes_only_when_the_weight_went_both_ways():
    options = {"stop_patience": 3, "penalty_start": "at-once"}
    assert trace([1.0] * 30, **options)[1] is None
    # Raised in step 4, lowered in step 9, and without progress for long: seen in step 10.
    assert trace([1.0] * 5 + [0.0] * 10, **options)[1] == 10


def test_progress_postpones_the_end():
    shrinking = [100.0 - step for step in range(40)]
    script = ([1.0] * 5 + [0.0] * 5) * 4
    assert trace(script, shrinking, stop_patience=6, penalty_start="at-once")[1] is None
    assert trace(script, stop_patience=6, penalty_start="at-once")[1] == 10


def test_only_smaller_masks_that_work_are_kept():
    options = InversionOptions()
    state = ControllerState.start(3, options, CPU)
    success = torch.tensor([1.0, 1.0, 0.5])
    state, improved, _ = advance(state, success, torch.tensor([9.0, 8.0, 1.0]), options)
    assert improved.tolist() == [True, True, False]
    assert state.best_norm.tolist() == [9.0, 8.0, math.inf]
    state, improved, _ = advance(state, success, torch.tensor([7.0, 8.0, 1.0]), options)
    assert improved.tolist() == [True, False, False]


def literal(successes, norms, options):
    """The published algorithm for one class, statement by statement."""
    cost, set_counter, up, down = 0.0, 0, 0, 0
    up_flag = down_flag = False
    best, early_best, early_counter = math.inf, math.inf, 0
    costs = []
    for success, norm in zip(successes, norms, strict=True):
        good = success >= options.success_threshold
        if good and norm < best:
            best = norm
        if best < math.inf:
            early_counter = early_counter + 1 if best >= options.stop_factor * early_best else 0
        early_best = min(early_best, best)
        if up_flag and down_flag and early_counter >= options.stop_patience:
            costs.append("finished")
            break
        if cost == 0 and good:
            set_counter += 1
            if set_counter >= options.penalty_patience:
                cost, up, down, up_flag, down_flag = options.penalty, 0, 0, False, False
        else:
            set_counter = 0
        up, down = (up + 1, 0) if good else (0, down + 1)
        if up >= options.penalty_patience:
            up, cost, up_flag = 0, cost * options.penalty_factor, True
        elif down >= options.penalty_patience:
            down, cost, down_flag = 0, cost / options.penalty_factor**1.5, True
        costs.append(cost)
    return costs


def test_all_classes_together_do_what_the_published_algorithm_does_to_each():
    generator = torch.Generator().manual_seed(0)
    classes, steps = 40, 120
    options = InversionOptions(penalty_patience=2, stop_patience=4, stop_factor=0.95)
    chance = torch.linspace(0.2, 0.95, classes)
    successes = (torch.rand(steps, classes, generator=generator) < chance).float()
    norms = 100 * torch.rand(steps, classes, generator=generator)

    state = ControllerState.start(classes, options, CPU)
    found = [[] for _ in range(classes)]
    for success, norm in zip(successes, norms, strict=True):
        state, _, finished = advance(state, success, norm, options)
        for label in range(classes):
            if "finished" not in found[label]:
                cost = "finished" if finished[label] else float(state.penalty[label])
                found[label].append(cost)
    ends = 0
    for label in range(classes):
        expected = literal(successes[:, label].tolist(), norms[:, label].tolist(), options)
        ends += expected[-1] == "finished"
        assert len(found[label]) == len(expected)
        assert [c for c in found[label] if c != "finished"] == pytest.approx(
            [c for c in expected if c != "finished"]
        )
    assert 0 < ends < classes


def test_selecting_keeps_the_others_state():
    options = InversionOptions(penalty_patience=1)
    state = ControllerState.start(2, options, CPU)
    state, _, _ = advance(state, torch.tensor([0.0, 1.0]), torch.tensor([5.0, 6.0]), options)
    kept = state.select(torch.tensor([False, True]))
    assert kept.penalty.tolist() == pytest.approx([2e-3])
    assert kept.best_norm.tolist() == [6.0]
