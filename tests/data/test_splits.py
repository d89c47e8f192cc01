"""Splits: sizes, shares of classes, what is disjoint, and what is refused."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.data.options import DataOptions
from backdoorkit.data.splits import make_splits, spread_positions, stratified_positions
from backdoorkit.errors import InputError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shuffled(*sizes):
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    return labels[torch.randperm(len(labels), generator=seeded(99))]


BALANCED = shuffled(*[50] * 10)
TEST = shuffled(*[20] * 10)


@pytest.mark.parametrize(
    ("sizes", "count", "parts"),
    [
        ([10, 10, 10], 6, [2, 2, 2]),
        ([60, 30, 10], 10, [6, 3, 1]),
        ([60, 30, 10], 100, [60, 30, 10]),
        ([60, 30, 10], 0, [0, 0, 0]),
        ([97, 2, 1], 10, [8, 1, 1]),  # nobody goes without
        ([97, 2, 1], 2, [2, 0, 0]),  # there is no room for all
        ([10, 0, 10], 4, [2, 0, 2]),
    ],
)
def test_classes_give_their_shares(sizes, count, parts):
    labels = shuffled(*sizes)
    for positions in (
        stratified_positions(labels, count, seeded()),
        spread_positions(labels, count),
    ):
        assert positions.dtype == torch.int64
        assert positions.tolist() == sorted(set(positions.tolist()))
        assert torch.bincount(labels[positions], minlength=3).tolist() == parts


def test_balanced_classes_give_equal_parts_to_within_one():
    counts = torch.bincount(BALANCED[stratified_positions(BALANCED, 57, seeded())])
    assert sorted(counts.tolist()) == [5] * 3 + [6] * 7


def test_who_gives_one_more_is_left_to_chance():
    def extra(seed):
        counts = torch.bincount(BALANCED[stratified_positions(BALANCED, 55, seeded(seed))])
        return tuple((counts == 6).nonzero().flatten().tolist())

    assert extra(1) == extra(1)
    assert len({extra(seed) for seed in range(10)}) > 5


def test_every_sample_can_be_drawn():
    times = torch.zeros(500)
    for seed in range(100):
        times[stratified_positions(BALANCED, 100, seeded(seed))] += 1
    assert times.min() > 0
    assert times.max() < 45  # each is expected 20 times


def test_spread_positions_are_far_apart_and_without_chance():
    labels = torch.zeros(100, dtype=torch.int64)
    assert spread_positions(labels, 4).tolist() == [24, 49, 74, 99]


def test_too_many_are_refused():
    with pytest.raises(InputError, match="501 samples are wanted and there are 500"):
        stratified_positions(BALANCED, 501, seeded())


def test_reserve_is_a_share_of_the_training_split_and_disjoint_from_it():
    splits = make_splits(BALANCED, TEST, DataOptions(), seeded())
    assert (len(splits.train), len(splits.reserve), len(splits.test)) == (475, 25, 200)
    assert torch.cat([splits.train, splits.reserve]).sort().values.tolist() == list(range(500))
    for part in (splits.train, splits.reserve, splits.test):
        assert part.tolist() == sorted(part.tolist())


def test_subsets_have_their_sizes_and_equal_classes():
    options = DataOptions(train_size=200, test_size=50, reserve_size=30)
    splits = make_splits(BALANCED, TEST, options, seeded())
    assert torch.bincount(BALANCED[splits.train]).tolist() == [20] * 10
    assert torch.bincount(BALANCED[splits.reserve]).tolist() == [3] * 10
    assert torch.bincount(TEST[splits.test]).tolist() == [5] * 10
    assert not set(splits.train.tolist()) & set(splits.reserve.tolist())


def test_ratio_is_of_the_subset_that_is_trained_on():
    splits = make_splits(BALANCED, TEST, DataOptions(train_size=200, reserve_ratio=0.1), seeded())
    assert (len(splits.train), len(splits.reserve)) == (200, 20)


def test_ratio_is_rounded_half_up():
    splits = make_splits(BALANCED, TEST, DataOptions(reserve_ratio=0.049), seeded())
    assert len(splits.reserve) == 25  # 24.5


@pytest.mark.parametrize("train_size", [None, 200])
def test_overlapping_reserve_is_drawn_from_what_is_trained_on(train_size):
    options = DataOptions(train_size=train_size, reserve_size=40, reserve_overlap=True)
    splits = make_splits(BALANCED, TEST, options, seeded())
    assert len(splits.train) == (train_size or 500)
    assert len(splits.reserve) == 40
    assert set(splits.reserve.tolist()) <= set(splits.train.tolist())


def test_no_reserve_at_all():
    splits = make_splits(BALANCED, TEST, DataOptions(reserve_size=0), seeded())
    assert (len(splits.train), len(splits.reserve)) == (500, 0)


def test_seed_decides():
    first, again, other = (
        make_splits(BALANCED, TEST, DataOptions(test_size=50), seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.reserve, again.reserve)
    assert torch.equal(first.test, again.test)
    assert not torch.equal(first.reserve, other.reserve)
    assert not torch.equal(first.test, other.test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 480, "reserve_size": 21}, "reserve of 21 images beside train_size 480 is"),
        ({"reserve_size": 500}, "beside at least one image is more than the 500 images"),
        ({"train_size": 501, "reserve_overlap": True}, "training split has 500 images"),
        (
            {"train_size": 20, "reserve_size": 21, "reserve_overlap": True},
            "reserve of 21 images cannot be drawn from 20 training images",
        ),
        ({"test_size": 201}, "test_size is 201, and the test split has 200 images"),
    ],
)
def test_more_than_there_is_is_refused_with_the_counts(options, message):
    with pytest.raises(InputError, match=message):
        make_splits(BALANCED, TEST, DataOptions(**options), seeded())
