"""Projected gradient ascent and adversarial training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoorkit.api import train_surrogate
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images
from backdoorkit_lc import LCConfig
from backdoorkit_lc._adversarial import AdversarialTraining, Ascent, ascend

LINF = Ascent(norm="linf", radius=16 / 255, step=4 / 255, steps=8)
L2 = Ascent(norm="l2", radius=0.5, step=0.2, steps=8)


class Linear(nn.Module):
    """Logits W x."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.tensor(weights)

    def forward(self, images):
        return images.flatten(1) @ self.weights.T


def train(**arguments):
    config = structure(LCConfig, {"surrogate_epochs": 3, "surrogate_batch_size": 16})
    return train_surrogate(tiny_images(96), tiny_context("lc"), config, **arguments)


@pytest.fixture(scope="module")
def surrogate():
    return train()


def test_one_step_on_a_linear_model_follows_the_sign_of_the_gradient():
    model = Linear([[0.5, -0.25], [0.0, 0.0]])
    images = torch.full((1, 1, 1, 2), 0.5)
    ascent = Ascent(norm="linf", radius=1.0, step=0.1, steps=1)
    moved = ascend(model, images, torch.tensor([0]), ascent, tiny_context("lc"))
    assert moved.flatten().tolist() == pytest.approx([0.4, 0.6])


def test_one_l2_step_has_its_length_and_the_direction_of_the_gradient():
    model = Linear([[0.3, -0.4], [0.0, 0.0]])
    images = torch.full((1, 1, 1, 2), 0.5)
    ascent = Ascent(norm="l2", radius=1.0, step=0.1, steps=1)
    moved = ascend(model, images, torch.tensor([0]), ascent, tiny_context("lc"))
    assert moved.flatten().tolist() == pytest.approx([0.44, 0.58])


def test_images_stay_within_the_bound_and_within_range(surrogate):
    data = tiny_images(64, seed=5)
    images = data.images.float() / 255
    for ascent in (LINF, L2):
        moved = ascend(surrogate, images, data.labels, ascent, tiny_context("lc"))
        change = moved - images
        length = change.abs().amax() if ascent is LINF else change.flatten(1).norm(dim=1).max()
        assert 0.9 * ascent.radius < length <= ascent.radius * 1.0001
        assert 0 <= moved.min() <= moved.max() <= 1


def test_the_surrogate_no_longer_recognises_them(surrogate):
    data = tiny_images(64, seed=5)
    images = data.images.float() / 255
    strong = Ascent(norm="linf", radius=32 / 255, step=4 / 255, steps=12)
    moved = ascend(surrogate, images, data.labels, strong, tiny_context("lc"))
    before, after = (
        (surrogate(shown).argmax(1) == data.labels).float().mean() for shown in (images, moved)
    )
    assert before > 0.9
    assert after < 0.3


def test_an_image_moves_the_same_way_in_every_batch(surrogate):
    data = tiny_images(12, seed=5)
    images = data.images.float() / 255
    context = tiny_context("lc")
    whole = ascend(surrogate, images, data.labels, L2, context)
    alone = ascend(surrogate, images[:1], data.labels[:1], L2, context)
    assert torch.allclose(alone, whole[:1], atol=1e-3)
    assert context.samples_seen == 13 * L2.steps


def test_no_step_and_no_room_change_nothing(surrogate):
    data = tiny_images(4)
    images = data.images.float() / 255
    still = Ascent(norm="linf", radius=0.1, step=0.1, steps=0)
    tight = Ascent(norm="l2", radius=0.0, step=0.1, steps=2)
    for ascent in (still, tight):
        moved = ascend(surrogate, images, data.labels, ascent, tiny_context("lc"))
        assert torch.allclose(moved, images, atol=1e-6)


def test_random_starts_lie_within_the_bound():
    images = torch.full((50, 3, 8, 8), 0.5)
    for ascent in (LINF, L2):
        start = ascent.anywhere(images, torch.Generator().manual_seed(0))
        assert torch.equal(ascent.project(start, images), start)
        assert not torch.equal(start[0], start[1])


def test_adversarial_training_makes_a_surrogate_harder_to_fool(surrogate):
    weak = Ascent(norm="linf", radius=24 / 255, step=12 / 255, steps=3)
    hooks = AdversarialTraining(weak, tiny_context("lc"))
    robust = train(hooks=hooks, facts={"ascent": "weak"})
    data = tiny_images(64, seed=5)
    images = data.images.float() / 255
    shares = []
    for model in (surrogate, robust):
        moved = ascend(model, images, data.labels, weak, tiny_context("lc"))
        shares.append((model(moved).argmax(1) == data.labels).float().mean().item())
    assert shares[1] > shares[0] + 0.2
