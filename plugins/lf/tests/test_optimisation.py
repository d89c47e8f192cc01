"""Patterns that lead a surrogate to the target."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoorkit.api import InputError, train_surrogate
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images
from backdoorkit_lf import LFConfig
from backdoorkit_lf._attack import LF
from backdoorkit_lf._optimisation import Fooling, deepfool, measure, optimise, perturb

LARGEST = 0.2


class Linear(nn.Module):
    """Logits W x for images of 1 x 1 x 2."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.tensor(weights)

    def forward(self, images):
        return images.flatten(1) @ self.weights.T


@pytest.fixture(scope="module")
def surrogate():
    config = structure(LFConfig, {"surrogate_epochs": 3, "surrogate_batch_size": 32})
    return train_surrogate(tiny_images(256), tiny_context("lf"), config)


def test_one_deepfool_step_reaches_the_boundary_of_a_linear_model():
    model = Linear([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    images = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).reshape(2, 1, 1, 2)
    steps, reached = deepfool(model, images, 1, tiny_context("lf"))
    assert steps[0].flatten().tolist() == pytest.approx([-0.4, 0.4])
    assert steps[1].flatten().tolist() == [0, 0]
    assert reached.tolist() == [True, False]  # the second one was there from the start


def test_deepfool_gives_up_where_the_surrogate_is_flat():
    model = Linear([[0.0, 0.0], [0.0, 0.0]])
    images = torch.full((3, 1, 1, 2), 0.5)
    steps, reached = deepfool(model, images, 1, tiny_context("lf"))
    assert (steps == 0).all()
    assert not reached.any()


def test_deepfool_on_a_network_crosses_with_the_smallest_overshoot(surrogate):
    images = tiny_images(40).images.float() / 255
    before = surrogate(images).argmax(1)
    steps, reached = deepfool(surrogate, images, 2, tiny_context("lf"))
    assert torch.equal(reached, before != 2)
    after = surrogate(images + 1.02 * steps).argmax(1)
    assert (after == 2).all()
    assert (steps[reached].flatten(1).norm(dim=1) > 0).all()


def test_optimised_pattern_is_smooth_in_range_and_leads_to_the_target(surrogate):
    data = tiny_images(128)
    arguments = {"target": 1, "largest": LARGEST, "context": tiny_context("lf")}
    start = optimise(surrogate, data, steps=0, **arguments)
    pattern = optimise(surrogate, data, steps=40, **arguments)
    assert pattern.min() == 0
    assert pattern.max().item() == pytest.approx(LARGEST)
    energy = torch.fft.fft2(pattern.mean(0)).abs().square()
    low = torch.fft.fftfreq(16, 1 / 16).abs() <= 3
    assert energy[low][:, low].sum() > 0.9 * energy.sum()
    held_out = tiny_images(128, seed=5)
    reached = measure(surrogate, held_out, pattern, 1)
    assert reached.to_target > measure(surrogate, held_out, start, 1).to_target + 0.2


def test_search_ends_once_a_fifth_of_the_images_is_fooled(surrogate):
    context, data = tiny_context("lf"), tiny_images(100)
    pattern = perturb(surrogate, data, target=1, largest=0.6, context=context)
    assert pattern.min() == 0
    assert pattern.max().item() == pytest.approx(0.6)
    assert measure(surrogate, data, pattern, 1).fooled >= 0.2
    assert 0 < context.samples_seen < 20_000  # a pass or two, not fifty


def test_search_ends_where_nothing_can_be_fooled():
    flat = Linear([[0.0] * 768] * 4)
    pattern = perturb(flat, tiny_images(20), target=1, largest=0.2, context=tiny_context("lf"))
    assert (pattern == 0).all()


def test_fooling_counts_changed_answers_and_answers_of_the_target():
    data = tiny_images(40)

    class Brightness(nn.Module):
        """Class 1 for bright images, else class 0."""

        def forward(self, images):
            bright = (images.mean((1, 2, 3)) > 0.99).float()
            return torch.stack([1 - bright, bright, *[bright * 0 - 1] * 2], 1)

    dark, white = torch.zeros(3, 16, 16), torch.ones(3, 16, 16)
    assert measure(Brightness(), data, dark, 1) == Fooling(0, 0)
    assert measure(Brightness(), data, white, 1) == Fooling(1, 1)
    assert measure(Brightness(), data, white, 2) == Fooling(1, 0)


def test_a_searched_pattern_is_repeatable_and_what_it_reached_is_noted():
    attack = LF(structure(LFConfig, {"pattern": "optimised", "steps": 10, "surrogate_epochs": 1}))
    contexts = [tiny_context("lf", seed=seed) for seed in (0, 0, 1)]
    first, again, other = (attack.prepare(tiny_images(64), of).pattern for of in contexts)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert contexts[0].notes.keys() == {"fooled", "to_target"}
    assert [asset.name for asset in contexts[0].assets] == ["surrogate", "pattern"]


def test_the_dome_needs_no_surrogate():
    context = tiny_context("lf")
    LF(LFConfig()).prepare(tiny_images(64), context)
    assert context.assets == ()
    assert context.notes == {}


def test_a_target_that_is_no_class_is_refused_before_anything_is_trained():
    attack = LF(structure(LFConfig, {"pattern": "optimised", "target": 9}))
    with pytest.raises(InputError, match="target 9 is not a class"):
        attack.prepare(tiny_images(64), tiny_context("lf"))
