"""Choosing a level on the clean reserve alone."""

from __future__ import annotations

import math

import pytest
import torch

from backdoorkit.data.images import ImageSet
from backdoorkit.errors import ContractError, InputError
from backdoorkit.selection import largest_accepted, split_reserve


def reserve(count, classes):
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    return ImageSet.from_tensors(images, torch.arange(count) % classes, num_classes=classes)


def generator():
    return torch.Generator().manual_seed(0)


def test_the_parts_are_disjoint_complete_and_stratified():
    to_fit, to_choose = split_reserve(reserve(60, 3), 0.2, generator())
    assert torch.bincount(to_choose.labels).tolist() == [4, 4, 4]
    assert torch.bincount(to_fit.labels).tolist() == [16, 16, 16]
    assert sorted(torch.cat([to_fit.ids, to_choose.ids]).tolist()) == list(range(60))


def test_the_split_follows_its_generator():
    one = split_reserve(reserve(60, 3), 0.2, generator())[1].ids
    assert torch.equal(one, split_reserve(reserve(60, 3), 0.2, generator())[1].ids)
    other = split_reserve(reserve(60, 3), 0.2, torch.Generator().manual_seed(1))[1].ids
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("count", "held_out"), [(40, 0.2), (12, 0.9), (0, 0.5)])
def test_a_reserve_too_small_to_split_is_refused_with_its_numbers(count, held_out):
    with pytest.raises(InputError, match=rf"its {count} images .*enlarge the reserve"):
        split_reserve(reserve(count, 10), held_out, generator())


@pytest.mark.parametrize("held_out", [0.0, 1.0, -0.5, math.nan])
def test_the_share_lies_between_zero_and_one(held_out):
    with pytest.raises(ContractError, match="between 0 and 1"):
        split_reserve(reserve(40, 2), held_out, generator())


def test_the_strongest_level_before_the_first_violation_is_taken():
    accuracies = {0.1: 0.95, 0.2: 0.90, 0.3: 0.80, 0.4: 0.94}
    tried = []

    def accuracy_at(level):
        tried.append(level)
        return accuracies[level]

    assert largest_accepted(sorted(accuracies), accuracy_at, 0.9) == 0.2
    assert tried == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("first", [0.5, math.nan])
def test_none_where_even_the_weakest_level_costs_too_much(first):
    assert largest_accepted([1, 2], lambda level: first, 0.9) is None


def test_all_levels_may_pass():
    assert largest_accepted([1, 2, 3], lambda level: 1.0, 0.9) == 3


def test_no_levels_give_none():
    assert largest_accepted([], lambda level: 1.0, 0.9) is None


@pytest.mark.parametrize("levels", [[2, 1], [1, 1]])
def test_levels_must_ascend(levels):
    with pytest.raises(ContractError, match="ascending"):
        largest_accepted(levels, lambda level: 1.0, 0.9)
