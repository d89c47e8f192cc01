"""The search of the perturbation, on models where the worst one is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoorkit.api import ImageSet, batches
from backdoorkit.testing import tiny_context
from backdoorkit_ibau import IBAUConfig
from backdoorkit_ibau._perturbation import (
    answers,
    ascend,
    find_perturbation,
    inner_loss,
    perturbed,
    project,
)

SHAPE = (1, 3, 3)


class Linear(nn.Module):
    """Two classes, logits ``rows`` x."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, images):
        return images.flatten(1) @ self.rows.T


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def grey(count, labels):
    images = torch.randint(100, 156, (count, *SHAPE), dtype=torch.uint8)
    return ImageSet.from_tensors(images, labels, num_classes=2)


def search(model, reserve, predicted, **options):
    config = IBAUConfig(**{"batch_size": 4, **options})
    return find_perturbation(
        model,
        lambda: batches(reserve, config.batch_size),
        predicted,
        torch.zeros(1, *SHAPE),
        config,
        tiny_context("ibau"),
    )


def test_for_a_linear_model_it_points_from_one_row_to_the_other():
    model = Linear(torch.randn(2, 9))
    reserve, zeros = grey(8, torch.zeros(8).long()), torch.zeros(8).long()
    found = search(model, reserve, zeros, radius=3.0, ascent_steps=20, penalty=0.0)
    away = (model.rows[1] - model.rows[0]).detach()
    torch.testing.assert_close(found.flatten(), 3 * away / away.norm(), rtol=1e-4, atol=1e-5)


def test_it_leaves_the_models_own_answers_not_the_labels():
    model = Linear(torch.randn(2, 9))
    wrong, ones = grey(8, torch.zeros(8).long()), torch.ones(8).long()
    found = search(model, wrong, ones, ascent_steps=5, penalty=0.0)
    assert float(found.flatten() @ (model.rows[0] - model.rows[1]).detach()) > 0


def test_answers_belong_to_images_by_position():
    # Half of the images in one direction, half in the other: the pulls of equal logits cancel.
    model = Linear(torch.zeros(2, 9))
    with torch.no_grad():
        model.rows[0, 0] = 1.0
    images = torch.full((4, *SHAPE), 128, dtype=torch.uint8)
    reserve = ImageSet.from_tensors(images, torch.zeros(4).long(), num_classes=2)
    only_last = torch.tensor([1, 1, 1, 0])
    options = {"batch_size": 2, "ascent": "gradient", "ascent_rate": 1.0, "penalty": 0.0}
    first, both = (
        search(model, reserve, only_last, ascent_steps=steps, **options) for steps in (1, 2)
    )
    chance = torch.tensor(128 / 255).sigmoid()  # of class 0
    assert float(first[0, 0, 0, 0]) == pytest.approx(float(chance), rel=1e-5)
    # At the second batch (answers 1 and 0) the slope of the mean loss is p - ½.
    moved = (torch.tensor(128 / 255) + chance).sigmoid()
    assert float(both[0, 0, 0, 0]) == pytest.approx(float(chance + moved - 0.5), rel=1e-5)


def test_a_normalized_step_has_its_length_whatever_the_slope():
    for scale in (1e-6, 1.0, 1e6):
        moved = ascend(
            torch.zeros(1, *SHAPE), torch.ones(1, *SHAPE) * scale, rate=0.5, normalized=True
        )
        torch.testing.assert_close(moved, torch.full((1, *SHAPE), -0.5 / 3))


def test_a_plain_step_is_the_slope_times_the_rate():
    slope = torch.randn(1, *SHAPE)
    moved = ascend(torch.ones(1, *SHAPE), slope, rate=10, normalized=False)
    torch.testing.assert_close(moved, 1 - 10 * slope)


def test_a_slope_of_zero_moves_nothing_and_is_no_nan():
    still = ascend(torch.ones(1, *SHAPE), torch.zeros(1, *SHAPE), rate=1, normalized=True)
    assert torch.equal(still, torch.ones(1, *SHAPE))
    assert torch.equal(project(torch.zeros(1, *SHAPE), 1.0), torch.zeros(1, *SHAPE))


def test_projection_shortens_what_is_long_and_nothing_else():
    long, short = torch.full((1, *SHAPE), 2.0), torch.full((1, *SHAPE), 0.1)
    torch.testing.assert_close(project(long, 3.0), torch.ones(1, *SHAPE))
    assert torch.equal(project(short, 3.0), short)


@pytest.mark.parametrize("ascent", ["normalized", "gradient"])
def test_the_ball_holds_only_where_projection_is_on(ascent):
    model, zeros = Linear(5 * torch.randn(2, 9)), torch.zeros(8).long()
    options = {"ascent": ascent, "ascent_rate": 2.0, "ascent_steps": 10, "radius": 1.5}
    reserve = grey(8, zeros)
    assert search(model, reserve, zeros, **options).norm() == pytest.approx(1.5, rel=1e-5)
    assert search(model, reserve, zeros, project=False, **options).norm() > 1.5


def test_the_inner_loss_is_minus_cross_entropy_plus_the_penalty():
    loss = inner_loss(torch.zeros(5, 4), torch.zeros(5).long(), torch.full((1, *SHAPE), 2.0), 0.5)
    assert float(loss) == pytest.approx(0.5 * 36 - torch.tensor(4.0).log().item())


def test_clamping_keeps_pixels_in_range_and_only_on_request():
    images, delta = torch.tensor([0.1, 0.9]), torch.tensor([-0.5, 0.5])
    assert perturbed(images, delta, clamp=True).tolist() == [0, 1]
    torch.testing.assert_close(perturbed(images, delta, clamp=False), torch.tensor([-0.4, 1.4]))


def test_the_search_goes_on_beyond_one_pass():
    model, zeros = Linear(torch.randn(2, 9)), torch.zeros(3).long()
    options = {"ascent_rate": 0.25, "penalty": 0.0}
    lengths = [
        float(search(model, grey(3, zeros), zeros, ascent_steps=steps, **options).norm())
        for steps in (1, 7)
    ]
    assert lengths == pytest.approx([0.25, 7 * 0.25], rel=1e-4)


def test_answers_are_those_under_the_perturbation_in_order():
    rows = torch.zeros(2, 9)
    rows[1, 0] = 1.0
    rows[0] = 0.5 / 9
    model = Linear(rows)
    values = torch.tensor([0, 255, 10, 250, 0], dtype=torch.uint8)
    images = values.view(-1, 1, 1, 1).expand(-1, *SHAPE).contiguous()
    reserve = ImageSet.from_tensors(images, torch.zeros(5).long(), num_classes=2)
    shift = torch.zeros(1, *SHAPE)
    config, context = IBAUConfig(batch_size=2), tiny_context("ibau")
    assert answers(model, reserve, shift, config, context).tolist() == [0, 1, 1, 1, 0]
    shift[..., 0, 0] = 1.0
    assert answers(model, reserve, shift, config, context).tolist() == [1, 1, 1, 1, 1]


def test_steps_are_counted_as_images_that_went_through_gradients():
    context, zeros = tiny_context("ibau"), torch.zeros(6).long()
    config = IBAUConfig(batch_size=4, ascent_steps=3)
    reserve = grey(6, zeros)
    start = torch.zeros(1, *SHAPE)
    find_perturbation(
        Linear(torch.randn(2, 9)), lambda: batches(reserve, 4), zeros, start, config, context
    )
    assert (context.samples_seen, context.gradient_steps) == (4 + 2 + 4, 0)
    assert torch.equal(start, torch.zeros(1, *SHAPE))
