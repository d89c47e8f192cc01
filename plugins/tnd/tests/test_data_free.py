"""DF-TND: projection and rule on numbers by hand, the outcome on a backdoor known by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoorkit import Need
from backdoorkit.api import StructureError, find_structure
from backdoorkit.tasks import DetectionTask
from backdoorkit.testing import PLANTED_CLASSES, PLANTED_SHAPE, PlantedNetwork, planted_context
from backdoorkit_tnd import DataFreeConfig
from backdoorkit_tnd._data_free import (
    DataFreeDetector,
    Increases,
    increases,
    judge,
    onto_simplex,
)

QUICK = {"iterations": 60, "refinement": 20}


def search(model, **options):
    context = planted_context("df-tnd")
    model = model.eval().requires_grad_(False)
    seeds = torch.rand(1, 10, *PLANTED_SHAPE, generator=context.generator("seeds"))
    config = DataFreeConfig(**{**QUICK, **options})
    return increases(model, context.structure(model), seeds, config, context)


def detect(model, **options):
    """No data at all are in the task."""
    task = DetectionTask(
        method="df-tnd",
        num_classes=PLANTED_CLASSES,
        image_shape=PLANTED_SHAPE,
        resources={Need.WEIGHTS: model.eval()},
    )
    detector = DataFreeDetector(DataFreeConfig(**{**QUICK, **options}))
    return detector.run(task, planted_context("df-tnd"))


# -- the simplex -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "nearest"),
    [
        ([0.5, 0.5], [0.5, 0.5]),
        ([2.0, 0.0], [1.0, 0.0]),
        ([1.0, 1.0, 1.0], [1 / 3] * 3),
        ([0.6, 0.6, 0.1], [0.5, 0.5, 0.0]),
        ([0.0, 0.0], [0.5, 0.5]),  # sums to less than 1: where bisection from 0 does nothing
        ([-1.0, 0.2, 0.2], [0.0, 0.5, 0.5]),
    ],
)
def test_known_projections(values, nearest):
    torch.testing.assert_close(onto_simplex(torch.tensor(values)), torch.tensor(nearest))


def test_projections_are_on_the_simplex_and_stay():
    values = torch.randn(20, 9, generator=torch.Generator().manual_seed(0))
    found = onto_simplex(values)
    assert float(found.min()) >= 0
    torch.testing.assert_close(found.sum(dim=1), torch.ones(20))
    torch.testing.assert_close(onto_simplex(found), found)


def test_a_projection_is_what_bisection_finds():
    values = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)).double() + 0.3
    low, high = torch.zeros(6, 1).double(), torch.full((6, 1), 10.0).double()
    for _ in range(60):
        middle = (low + high) / 2
        above = (values - middle).clamp(min=0).sum(dim=1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    torch.testing.assert_close(onto_simplex(values), (values - low).clamp(min=0), rtol=0, atol=1e-6)


# -- the rule --------------------------------------------------------------------------------------


def verdict(rise, **options):
    nothing = torch.zeros(1, 1, 1, 2, 2)
    found = Increases(
        rise=torch.tensor(rise, dtype=torch.float64),
        masks=nothing,
        patterns=nothing,
        weights=torch.ones(1, 1),
        objective=torch.zeros(1),
    )
    return judge(found, DataFreeConfig(**options))


def test_a_rise_that_is_an_outlier_and_twice_the_second_is_flagged():
    # median 10, deviations (30, 2, 0, 1, 1): their median 1; 30 / 1.4826 = 20.2
    found = verdict([40.0, 12.0, 10.0, 9.0, 11.0 - 2])
    assert found.details["deviations"] == pytest.approx(30 / 1.4826)
    assert found.details["ratio"] == pytest.approx(40 / 12)
    assert found.score == pytest.approx(40 / 12 / 2)
    assert (found.detected, found.target) == (True, 0)


def test_both_conditions_must_hold():
    assert not verdict([40.0, 30.0, 10.0, 9.0, 9.0]).detected  # the second is near
    assert not verdict([8.0, 3.0, 0.0, -3.0, -8.0]).detected  # all are far apart


def test_nothing_stands_out_where_nothing_rises():
    for rise in ([0.0] * 5, [-1.0, -9.0, -9.0, -9.0, -9.0]):
        assert (verdict(rise).score, verdict(rise).detected) == (0.0, False)


def test_increases_of_logits_can_be_judged_as_released():
    found = verdict([120.0, 30.0, 150.0], rule="increase")
    assert (found.score, found.threshold, found.target) == (150.0, 100.0, 2)
    assert found.details["flagged"] == [2, 0]


# -- outcome ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    return search(PlantedNetwork())


def test_the_planted_class_rises_most(planted):
    ordered = planted.rise.sort(descending=True).values
    assert planted.rise.argmax() == 0
    assert float(ordered[0] / ordered[1]) >= 1.5


def test_in_the_clean_twin_no_class_does():
    ordered = search(PlantedNetwork(vote=0.0)).rise.sort(descending=True).values
    assert float(ordered[0] / ordered[1]) < 1.1


def test_a_huge_penalty_leaves_the_images_as_they_are():
    found = search(PlantedNetwork(), iterations=2, refinement=1, penalty=1e6)
    assert not found.masks.any()
    assert found.rise.tolist() == [0.0] * PLANTED_CLASSES


def test_from_zeros_the_planted_trigger_is_never_found():
    # Where neither mask nor pattern is there, none can grow that would brighten a pixel.
    found = search(PlantedNetwork(), mask_start=0.0, pattern_start=0.0)
    assert found.rise.abs().max() < 0.1


def test_small_steps_climb():
    objective = search(PlantedNetwork(), rate=1e-3, iterations=10, refinement=0).objective
    assert (objective.diff() >= 0).all()


@pytest.mark.parametrize(("weights", "largest"), [("uniform", 1 / 9), ("gradient", 1.0)])
def test_weights_stay_or_concentrate(weights, largest):
    found = search(PlantedNetwork(), weights=weights)
    assert float(found.weights.max()) == pytest.approx(largest, abs=1e-6)


def test_it_needs_no_data_and_is_the_same_every_time():
    first, second = detect(PlantedNetwork(), restarts=2), detect(PlantedNetwork(), restarts=2)
    assert first.score == second.score
    assert first.details == second.details
    assert first.tensors["seed_masks"].shape == (2, 10, *PLANTED_SHAPE)
    assert first.details["suspect"] == 0


def test_two_classes_cannot_be_compared():
    structure = find_structure(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), (1, 8, 8))
    with pytest.raises(StructureError, match="at least 3"):
        DataFreeDetector(DataFreeConfig()).check(structure)
    DataFreeDetector(DataFreeConfig(rule="increase")).check(structure)
