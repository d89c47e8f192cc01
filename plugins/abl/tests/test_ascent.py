"""Global gradient ascent: sign, cap, stops, and the joint form."""

from __future__ import annotations

import math

import attrs
import pytest
import torch

from backdoorkit.api import batches
from backdoorkit.testing import tiny_context, tiny_images, tiny_network
from backdoorkit_abl import ABLConfig
from backdoorkit_abl._ascent import (
    JointAscent,
    ascend,
    capped,
    global_gradient_ascent,
    loss_limit,
)
from backdoorkit_abl._isolation import Isolation, lowest, sample_losses

PLAIN = {
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "precision": "float32",
    "unlearning_epochs": 1,
}


def isolation(count=8, size=40, model=None):
    model, data = model or tiny_network(), tiny_images(size)
    losses = sample_losses(model, data, tiny_context("abl"))
    return Isolation(model=model, data=data, losses=losses, positions=lowest(losses, count))


def test_the_loss_is_that_of_the_rest_less_that_of_the_isolated():
    rest, isolated = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.1])
    assert global_gradient_ascent(rest, isolated, math.inf).item() == pytest.approx(1.2)


def test_beyond_the_cap_there_is_no_gradient():
    losses = torch.tensor([0.5, 3.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(-capped(losses, 2.0).sum(), losses)
    assert gradient.tolist() == [-1.0, 0.0]


def test_the_cap_is_in_units_of_guessing():
    assert loss_limit(2.0, 10) == pytest.approx(2 * math.log(10))
    assert loss_limit(0.0, 10) == math.inf


def test_one_small_step_raises_the_loss_of_the_isolated():
    found = isolation()
    config = ABLConfig(**PLAIN, unlearning_learning_rate=1e-3, freeze_norm_statistics=True)
    facts = ascend(found.model, found.isolated, config, tiny_context("abl"))
    before, after = facts["unlearning_losses"]
    assert before < after < before + 0.5
    assert facts["unlearning_epochs"] == 1
    assert facts["unlearning_stop"] == "epochs"


def test_frozen_statistics_stay_and_others_move():
    for frozen in (True, False):
        found = isolation()
        before = found.model.network.bn1.running_mean.clone()
        config = ABLConfig(**PLAIN, freeze_norm_statistics=frozen)
        ascend(found.model, found.isolated, config, tiny_context("abl"))
        assert torch.equal(found.model.network.bn1.running_mean, before) == frozen


def test_where_every_sample_is_at_the_cap_nothing_moves_and_ascent_ends():
    found = isolation()
    before = {name: value.clone() for name, value in found.model.named_parameters()}
    config = ABLConfig(
        **{**PLAIN, "unlearning_epochs": 5},
        loss_cap=1e-6,
        unlearning_learning_rate=0.1,
    )
    facts = ascend(found.model, found.isolated, config, tiny_context("abl"))
    assert (facts["unlearning_epochs"], facts["unlearning_stop"]) == (1, "cap")
    assert all(torch.equal(before[name], p) for name, p in found.model.named_parameters())


def test_ascent_ends_at_the_stop_loss():
    found = isolation()
    config = ABLConfig(
        **{**PLAIN, "unlearning_epochs": 50},
        loss_cap=0.0,
        stop_loss=1.6,
        unlearning_learning_rate=0.05,
    )
    facts = ascend(found.model, found.isolated, config, tiny_context("abl"))
    *earlier, last = facts["unlearning_losses"]
    assert facts["unlearning_stop"] == "stop-loss"
    assert max(earlier) < 1.6 <= last
    assert facts["unlearning_epochs"] == len(earlier) < 50


# -- joint -----------------------------------------------------------------------------------------


def joint(found, **options):
    return JointAscent(found, ABLConfig(precision="float32", **options), tiny_context("abl"))


def test_every_batch_gets_isolated_samples_after_its_own():
    found = isolation(count=8)
    hooks = joint(found, unlearning_batch_size=5)
    batch = next(batches(found.rest, 16))
    both = hooks.transform_batch(batch, 0)
    assert len(both) == 21
    assert torch.equal(both.images[:16], batch.images)
    assert both.indices[16:].tolist() == [-1] * 5
    isolated = found.isolated.images.float() / 255
    for image, label in zip(both.images[16:], both.labels[16:], strict=True):
        where = (isolated == image).flatten(1).all(dim=1).nonzero().flatten()
        assert len(where) == 1
        assert found.isolated.labels[where] == label


def test_no_more_isolated_samples_are_drawn_than_there_are():
    found = isolation(count=3)
    both = joint(found).transform_batch(next(batches(found.rest, 16)), 0)
    assert len(both) == 19


def test_the_joint_loss_ascends_on_the_isolated_and_descends_on_the_rest():
    found = isolation(count=2)
    hooks = joint(found, loss_cap=0.0)
    both = hooks.transform_batch(next(batches(found.rest, 4)), 0)
    logits = torch.zeros(6, 4, requires_grad=True)
    loss = hooks.loss(logits, attrs.evolve(both, labels=torch.zeros(6, dtype=torch.int64)), 0)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0.0)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([-0.75 / 4] * 4 + [0.75 / 2] * 2))
