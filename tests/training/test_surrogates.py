"""Surrogates: classifiers that an attacker trains on clean images."""

from __future__ import annotations

import pytest
import torch

from backdoorkit import SurrogateOptions, TrainOptions
from backdoorkit.api import InputError, TrainingHooks, train_surrogate
from backdoorkit.data.statistics import channel_statistics
from backdoorkit.errors import UnknownNameError
from backdoorkit.testing import tiny_context, tiny_images, tiny_network

FAST = SurrogateOptions(surrogate_epochs=2, surrogate_batch_size=32)


def train(options=FAST, *, seed=0, context=None, **arguments):
    context = context or tiny_context("attack", seed=seed)
    return train_surrogate(tiny_images(128), context, options, **arguments)


def weights(model):
    return torch.cat([parameter.flatten() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def surrogate():
    return train()


def test_a_surrogate_classifies_images_it_has_not_seen(surrogate):
    assert tiny_context("attack").accuracy(surrogate, tiny_images(64, seed=5)) > 0.9


def test_a_surrogate_is_to_be_looked_into_not_trained(surrogate):
    assert not any(module.training for module in surrogate.modules())
    assert not any(parameter.requires_grad for parameter in surrogate.parameters())


def test_its_normalisation_is_that_of_the_images(surrogate):
    images = tiny_images(128).images.double() / 255
    assert torch.allclose(surrogate.mean.double(), images.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(surrogate.std.double(), images.std((0, 2, 3), correction=0), atol=1e-6)


def test_seed_and_purpose_alone_decide_on_the_weights(surrogate):
    context = tiny_context("attack")
    context.fit(tiny_network(), tiny_images(8), TrainOptions(epochs=1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        again = train(context=context)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(again), weights(surrogate))
    assert not torch.equal(weights(train(seed=1)), weights(surrogate))
    assert not torch.equal(weights(train(purpose="another")), weights(surrogate))


def test_hooks_enter_its_training_and_the_cost_is_counted():
    class Frozen(TrainingHooks):
        def loss(self, logits, batch, epoch):
            return 0 * logits.sum()

    context = tiny_context("attack")
    frozen = train(SurrogateOptions(surrogate_epochs=1), hooks=Frozen(), context=context)
    assert context.accuracy(frozen, tiny_images(64)) < 0.8
    assert (context.samples_seen, context.gradient_steps) == (128, 1)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UnknownNameError, match="small-cnn"):
        train(SurrogateOptions(surrogate="small-cn"))
    empty = tiny_images(8).subset(torch.arange(0))
    with pytest.raises(InputError, match="no images"):
        train_surrogate(empty, tiny_context("attack"), FAST)


def test_channel_statistics_in_chunks_are_those_of_the_whole():
    data = tiny_images(50)
    assert channel_statistics(data, chunk=7) == channel_statistics(data)
