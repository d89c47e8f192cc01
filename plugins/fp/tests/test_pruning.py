"""Units, ranking and sweep, against what they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from backdoorkit.api import collect_features
from backdoorkit.testing import tiny_context, tiny_images
from backdoorkit_fp._pruning import (
    accuracy_sweep,
    columns_per_unit,
    levels,
    pruned_columns,
    unit_activations,
)

POOLED = nn.Sequential(
    nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
)
FLATTENED = nn.Sequential(
    nn.Conv2d(3, 6, 3, stride=4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 4)
)
HIDDEN = nn.Sequential(
    nn.Conv2d(3, 6, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(96, 12), nn.ReLU(),
    nn.Linear(12, 4),
)  # fmt: skip


def masked_channels(model, images, units):
    """Logits with the channels of the last feature map silenced where they are."""
    keep = torch.ones(6)
    keep[units] = 0
    handle = model[1].register_forward_hook(lambda _, __, output: output * keep[:, None, None])
    try:
        return model(images)
    finally:
        handle.remove()


@pytest.mark.parametrize(("model", "columns"), [(POOLED, 1), (FLATTENED, 4), (HIDDEN, 1)])
def test_a_unit_owns_the_columns_of_its_positions(model, columns):
    assert columns_per_unit(model, model[-1], tiny_images(4), tiny_context("fp")) == columns


@pytest.mark.parametrize(("model", "columns"), [(POOLED, 1), (FLATTENED, 4)])
def test_zeroed_columns_are_masked_channels(model, columns):
    images, order = tiny_images(8).images.float() / 255, torch.tensor([3, 1, 0, 2, 5, 4])
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        pruned[-1].weight[:, pruned_columns(order, 2, columns)] = 0
    torch.testing.assert_close(pruned(images), masked_channels(model, images, [3, 1]))


@pytest.mark.parametrize("model", [POOLED, FLATTENED, HIDDEN])
def test_the_sweep_is_what_evaluating_every_level_gives(model):
    data, context = tiny_images(40), tiny_context("fp")
    head = model[-1]
    columns = columns_per_unit(model, head, data, context)
    features, logits = collect_features(model, context.structure(model), data, context)
    order = unit_activations(features, columns, "mean")[0].argsort()
    swept = accuracy_sweep(features, logits, data.labels, head.weight, order, columns)

    literal = []
    for count in range(len(order) + 1):
        pruned = copy.deepcopy(model)
        with torch.no_grad():
            pruned[-1].weight[:, pruned_columns(order, count, columns)] = 0
        literal.append(context.accuracy(pruned, data))
    assert swept.tolist() == pytest.approx(literal, abs=1e-5)


def test_auto_takes_the_mean_of_features_that_are_never_negative():
    features = torch.tensor([[0.0, 2.0, 1.0], [4.0, 2.0, 1.0]])
    activations, statistic = unit_activations(features, 1, "auto")
    assert statistic == "mean"
    assert activations.tolist() == [2, 2, 1]


def test_auto_takes_the_absolute_value_of_signed_features():
    features = torch.tensor([[-3.0, 1.0], [3.0, 1.0]])
    activations, statistic = unit_activations(features, 1, "auto")
    assert statistic == "abs"
    assert activations.tolist() == [3, 1]
    assert unit_activations(features, 1, "mean")[0].tolist() == [0, 1]


def test_a_unit_of_several_columns_is_their_average():
    features = torch.tensor([[1.0, 3.0, 5.0, 7.0]])
    assert unit_activations(features, 2, "mean")[0].tolist() == [2, 6]


def test_levels_begin_at_nothing_and_never_reach_everything():
    assert list(levels(5, 0.01)) == [0, 1, 2, 3, 4]
    assert list(levels(512, 0.01))[:3] == [0, 6, 12]
    assert list(levels(4, 1.0)) == [0]


def test_a_larger_level_prunes_a_superset():
    order = torch.tensor([2, 0, 1])
    small, large = pruned_columns(order, 1, 2), pruned_columns(order, 2, 2)
    assert small.tolist() == [False, False, False, False, True, True]
    assert not (small & ~large).any()
