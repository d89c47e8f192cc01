"""Surrogates: classifiers that an attacker trains on clean images."""

from __future__ import annotations

import json

import attrs
import pytest
import torch

from backdoorkit import SurrogateOptions, TrainOptions
from backdoorkit.api import Context, InputError, TrainingHooks, train_surrogate
from backdoorkit.assets import ForgetfulShelf
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


def test_seed_and_name_alone_decide_on_the_weights(surrogate):
    context = tiny_context("attack")
    context.fit(tiny_network(), tiny_images(8), TrainOptions(epochs=1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        again = train(context=context)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights(again), weights(surrogate))
    assert not torch.equal(weights(train(seed=1)), weights(surrogate))
    assert not torch.equal(weights(train(name="another")), weights(surrogate))


def test_hooks_enter_its_training():
    class Frozen(TrainingHooks):
        def loss(self, logits, batch, epoch):
            return 0 * logits.sum()

    context = tiny_context("attack")
    frozen = train(SurrogateOptions(surrogate_epochs=1), hooks=Frozen(), context=context)
    assert context.accuracy(frozen, tiny_images(64)) < 0.8


class Shelf(ForgetfulShelf):
    """Keeps what it is given, by name and facts."""

    def __init__(self):
        self.kept = {}

    def load(self, name, facts):
        return self.kept.get((name, json.dumps(facts, sort_keys=True)))

    def save(self, tensors, record):
        self.kept[record.name, json.dumps(record.facts, sort_keys=True)] = (dict(tensors), record)


def test_it_is_made_once_and_its_cost_is_kept_apart(surrogate):
    shelf = Shelf()
    first, second = (
        Context(method="attack", seed=0, device=torch.device("cpu"), shelf=shelf) for _ in range(2)
    )
    made = train(context=first)
    (record,) = first.assets
    assert (record.samples_seen, record.gradient_steps) == (256, 8)
    assert first.samples_seen == 0
    assert len(shelf.kept) == 1
    (tensors, _) = next(iter(shelf.kept.values()))
    tensors["network.linear.bias"][:] = 7
    found = train(context=second)
    assert torch.equal(found.network.linear.bias, torch.full((4,), 7.0))
    assert torch.equal(weights(made), weights(surrogate))


@pytest.mark.parametrize(
    "changed",
    [
        {"options": attrs.evolve(FAST, surrogate_learning_rate=0.05)},
        {"options": attrs.evolve(FAST, surrogate_horizontal_flip=True)},
        {"hooks": TrainingHooks()},
        {"facts": {"radius": 8}},
        {"name": "another"},
    ],
)
def test_whatever_decides_on_it_makes_it_another(changed):
    shelf = Shelf()
    fast = attrs.evolve(FAST, surrogate_epochs=0)
    for arguments in ({}, changed):
        options = attrs.evolve(arguments.pop("options", fast), surrogate_epochs=0)
        context = Context(method="attack", seed=0, device=torch.device("cpu"), shelf=shelf)
        train(options, context=context, **arguments)
    assert len(shelf.kept) == 2


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UnknownNameError, match="small-cnn"):
        train(SurrogateOptions(surrogate="small-cn"))
    empty = tiny_images(8).subset(torch.arange(0))
    with pytest.raises(InputError, match="no images"):
        train_surrogate(empty, tiny_context("attack"), FAST)


def test_channel_statistics_in_chunks_are_those_of_the_whole():
    data = tiny_images(50)
    assert channel_statistics(data, chunk=7) == channel_statistics(data)
