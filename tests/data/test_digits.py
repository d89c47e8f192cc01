"""The embedded digits."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from backdoorkit.data._digits import Digits
from backdoorkit.data.options import DigitsOptions


def load(tmp_path, split, **options):
    return Digits(DigitsOptions(**options)).load(split, tmp_path)


def test_split_holds_every_digit_once_with_equal_shares(tmp_path):
    train, test = load(tmp_path, "train"), load(tmp_path, "test")
    assert (len(train), len(test)) == (1397, 400)
    original = torch.from_numpy(load_digits().images)
    assert int(train.images.long().sum() + test.images.long().sum()) == int(
        (original / 16 * 255 + 0.5).floor().sum()
    )
    assert torch.bincount(test.labels).tolist() == [40, 41, 39, 41, 40, 40, 40, 40, 39, 40]


def test_grey_levels_reach_from_black_to_white(tmp_path):
    images = load(tmp_path, "train").images
    assert images.shape == (1397, 1, 8, 8)
    assert images.unique().tolist() == [int(level / 16 * 255 + 0.5) for level in range(17)]


@pytest.mark.parametrize("size", [16, 32])
def test_larger_digits_are_the_same_ones(tmp_path, size):
    small, large = load(tmp_path, "test"), load(tmp_path, "test", size=size)
    assert large.shape == (1, size, size)
    assert torch.equal(small.labels, large.labels)
    means = torch.nn.functional.avg_pool2d(large.images.float(), size // 8)
    assert (means - small.images.float()).abs().mean() < 25


def test_three_channels_repeat_the_grey(tmp_path):
    grey, rgb = load(tmp_path, "test"), load(tmp_path, "test", channels=3)
    assert rgb.shape == (3, 8, 8)
    for channel in range(3):
        assert torch.equal(rgb.images[:, channel], grey.images[:, 0])


def test_loading_again_gives_the_same(tmp_path):
    assert torch.equal(load(tmp_path, "train").images, load(tmp_path, "train").images)
