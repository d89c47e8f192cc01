"""The network written by hand answers as it says."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.api import collect_features
from backdoorkit.testing import (
    PLANTED_CLASSES,
    PlantedNetwork,
    planted_context,
    planted_images,
    planted_success,
)

CONTEXT = planted_context("test")


@pytest.mark.parametrize(("vote", "success"), [(30.0, 1.0), (0.0, 0.0)])
def test_it_is_always_right_and_the_corner_is_its_backdoor(vote, success):
    model = PlantedNetwork(vote)
    assert CONTEXT.accuracy(model, planted_images(400, seed=3)) == 1
    assert planted_success(model) == success


def test_every_row_is_as_active_as_the_others_and_the_trigger_s_unit_is_dormant():
    model = PlantedNetwork()
    features, _ = collect_features(model, CONTEXT.structure(model), planted_images(800), CONTEXT)
    means = features.mean(dim=0)
    assert 0.24 < means[:PLANTED_CLASSES].min() < means[:PLANTED_CLASSES].max() < 0.26
    assert means[PLANTED_CLASSES] < 1e-3


def test_without_the_last_unit_nothing_of_the_backdoor_is_left():
    model = PlantedNetwork()
    with torch.no_grad():
        model.head.weight[:, -1] = 0
    assert planted_success(model) == 0
    assert CONTEXT.accuracy(model, planted_images(400)) == 1


def test_a_dark_corner_has_a_gradient():
    images = (planted_images(8).images.float() / 255).requires_grad_()
    PlantedNetwork()(images)[:, 0].sum().backward()
    assert (images.grad[..., -2:, -2:] > 0).all()
