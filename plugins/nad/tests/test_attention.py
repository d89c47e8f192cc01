"""Attention maps and their distances, on maps whose answers are known."""

from __future__ import annotations

import pytest
import torch

from backdoorkit_nad._attention import attention, attention_distance


def maps(count=4, channels=5, height=6, width=7, seed=0):
    return torch.randn(
        count, channels, height, width, generator=torch.Generator().manual_seed(seed)
    )


def test_a_map_is_the_sum_of_powers_over_the_channels():
    features = torch.tensor([[[[3.0, 0.0]], [[-4.0, 1.0]]]])  # one image, two channels, 1 x 2
    # A = (25, 1) for p = 2, and (7, 1) for p = 1
    expected = torch.tensor([[25.0, 1.0]])
    torch.testing.assert_close(attention(features), expected / expected.norm())
    expected = torch.tensor([[7.0, 1.0]])
    torch.testing.assert_close(attention(features, power=1.0), expected / expected.norm())


def test_a_map_has_length_one():
    torch.testing.assert_close(attention(maps()).norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("factor", [0.5, 3.0, -10.0])
def test_a_map_does_not_change_with_the_scale_of_the_features(factor):
    difference = attention(factor * maps()) - attention(maps())
    assert float(difference.abs().max()) < 1e-6


def test_the_order_of_channels_does_not_matter_and_their_number_may_differ():
    features = maps()
    torch.testing.assert_close(attention(features.flip(1)), attention(features))
    torch.testing.assert_close(attention(features.repeat(1, 3, 1, 1)), attention(features))


def test_one_pixel_says_nothing():
    torch.testing.assert_close(
        attention(maps(height=1, width=1)), torch.ones(4, 1), atol=1e-4, rtol=0
    )


def test_a_map_of_zeros_stays_zero_and_has_a_gradient():
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    found = attention(features)
    assert not found.any()
    attention_distance(found, torch.ones(2, 16), "squared").backward()
    assert features.grad.isfinite().all()


def test_activations_that_half_precision_could_not_square_are_fine():
    features = (1000 * maps()).half()
    torch.testing.assert_close(attention(features), attention(maps()), atol=1e-3, rtol=0)


@pytest.mark.parametrize("distance", ["squared", "norm", "mean"])
def test_equal_maps_have_distance_zero_and_a_finite_gradient(distance):
    features = maps().requires_grad_()
    found = attention_distance(attention(features), attention(maps()), distance)
    assert found.item() == 0
    found.backward()
    assert features.grad.isfinite().all()


def test_distances_of_known_maps():
    student = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    teacher = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    assert float(attention_distance(student, teacher, "squared")) == pytest.approx(1.0)
    assert float(attention_distance(student, teacher, "norm")) == pytest.approx(2**0.5 / 2)
    assert float(attention_distance(student, teacher, "mean")) == pytest.approx(0.25)


def test_the_mean_over_pixels_is_the_squared_distance_over_the_map_size():
    student, teacher = attention(maps()), attention(maps(seed=1))
    squared = attention_distance(student, teacher, "squared")
    mean = attention_distance(student, teacher, "mean")
    torch.testing.assert_close(mean * 6 * 7, squared)
