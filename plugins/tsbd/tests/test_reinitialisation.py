"""Stage 1: known answers of the neuron ranking and of the pooled threshold."""

from __future__ import annotations

import pytest
import torch

from backdoorkit_tsbd._reinitialisation import (
    neuron_weight_change,
    reinitialisation_mask,
    weight_change,
)

HAND = {
    "a": torch.tensor([[5.0, 1, 1], [0, 0, 3]]),
    "b": torch.tensor([[2.0, 2], [9, 0]]),
}


def pooled(mask):
    return torch.cat([layer.flatten() for layer in mask.values()])


def random_change(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv": (6, 3, 3, 3), "deep": (10, 6, 3, 3), "linear": (4, 7)}
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def test_the_change_of_a_neuron_is_the_l1_norm_over_its_fan_in():
    scores = neuron_weight_change(HAND)
    assert scores["a"].tolist() == [7, 3]
    assert scores["b"].tolist() == [4, 9]


def test_weight_change_is_the_absolute_difference():
    change = weight_change({"a": torch.tensor([[1.0, -2]])}, {"a": torch.tensor([[0.5, -4]])})
    assert change["a"].tolist() == [[0.5, 2.0]]


def test_the_hand_example_zeroes_the_five_and_the_nine():
    # The top half of the neurons is b1 and a0; their pool 9, 0, 5, 1, 1 keeps 9 and 5 at m = 0.4.
    mask = reinitialisation_mask(HAND, 0.5, 0.4)
    assert mask["a"].tolist() == [[True, False, False], [False, False, False]]
    assert mask["b"].tolist() == [[False, False], [True, False]]


def test_ties_at_the_threshold_are_all_zeroed():
    mask = reinitialisation_mask(HAND, 0.5, 0.6)  # three of five wanted, two are tied at 1
    assert mask["a"].tolist()[0] == [True, True, True]
    assert mask["b"].tolist()[1] == [True, False]


def test_everything_that_changed_is_zeroed_at_full_ratios():
    mask = reinitialisation_mask(HAND, 1, 1)
    assert all(torch.equal(mask[name], HAND[name] > 0) for name in HAND)


def test_nothing_is_zeroed_where_nothing_changed():
    still = {name: torch.zeros_like(tensor) for name, tensor in HAND.items()}
    assert not pooled(reinitialisation_mask(still, 1, 1)).any()


@pytest.mark.parametrize(("neuron_ratio", "zero_ratio"), [(0, 0.7), (0.15, 0), (0.01, 0.01)])
def test_ratios_that_round_to_none_zero_nothing(neuron_ratio, zero_ratio):
    assert not pooled(reinitialisation_mask(HAND, neuron_ratio, zero_ratio)).any()


@pytest.mark.parametrize("seed", range(3))
def test_as_many_weights_are_zeroed_as_the_pool_allows(seed):
    change = random_change(seed)
    mask = reinitialisation_mask(change, 0.5, 0.7)
    scores = torch.cat(list(neuron_weight_change(change).values()))
    fan_in = torch.tensor([27] * 6 + [54] * 10 + [7] * 4)
    pool = fan_in[scores.argsort(descending=True)[:10]].sum()
    assert pooled(mask).sum() == int(0.7 * pool)


@pytest.mark.parametrize("seed", range(3))
def test_a_smaller_share_zeroes_a_subset(seed):
    change = random_change(seed)
    small = pooled(reinitialisation_mask(change, 0.3, 0.3))
    large = pooled(reinitialisation_mask(change, 0.3, 0.8))
    assert small.sum() < large.sum()
    assert not (small & ~large).any()


def test_a_share_is_not_lost_to_rounding():
    change = {"a": torch.arange(1.0, 101).unsqueeze(1)}
    assert pooled(reinitialisation_mask(change, 0.29, 1)).sum() == 29


def test_reversed_order_takes_the_neurons_that_changed_least():
    mask = reinitialisation_mask(HAND, 0.25, 1, order="reversed")
    assert mask["a"].tolist() == [[False, False, False], [False, False, True]]
    assert not mask["b"].any()


def test_random_order_follows_its_generator():
    change = random_change(0)

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return pooled(reinitialisation_mask(change, 0.3, 1, order="random", generator=generator))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
