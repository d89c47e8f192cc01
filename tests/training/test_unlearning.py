"""Unlearning: uphill, in a copy, until accuracy is low enough, and not into infinity."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from backdoorkit import TrainOptions
from backdoorkit.api import ContractError, Unlearning, chance, unlearn
from backdoorkit.testing import tiny_context, tiny_images, tiny_victim
from backdoorkit.unlearning import grown_rate


def options(**values):
    return TrainOptions(
        **{
            "epochs": 100,
            "batch_size": 32,
            "learning_rate": 0.01,
            "schedule": "constant",
            "weight_decay": 0.0,
            "precision": "float32",
            **values,
        }
    )


def forget(training=None, context=None, **values):
    victim = tiny_victim()
    context = tiny_context("test") if context is None else context
    values = {"stop_accuracy": 0.5, **values}
    return unlearn(victim.model, victim.reserve, training or options(), context, **values)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


class Answer:
    labels = torch.tensor([0, 1])


def test_the_copy_forgets_and_the_model_stays_as_it_was():
    before, context = state_of(tiny_victim().model), tiny_context("test")
    unlearned = forget(context=context)
    assert 1 < unlearned.epochs < 100
    assert (unlearned.stop_reason, unlearned.accuracy <= 0.5) == ("accuracy", True)
    assert unlearned.gradient_steps == context.gradient_steps == 4 * unlearned.epochs
    assert not unlearned.model.training
    assert all(torch.equal(tiny_victim().model.state_dict()[n], v) for n, v in before.items())


def test_the_loss_rises_from_epoch_to_epoch():
    victim = tiny_victim()
    model, hooks = copy.deepcopy(victim.model), Unlearning(None, None)
    summary = tiny_context("test").fit(model, victim.reserve, options(epochs=6), hooks=hooks)
    losses = [-metrics.loss for metrics in summary.history]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


def test_it_ends_with_the_first_epoch_that_is_low_enough():
    victim = tiny_victim()
    model, hooks = copy.deepcopy(victim.model), Unlearning(0.5, None)
    history = tiny_context("test").fit(model, victim.reserve, options(), hooks=hooks).history
    assert history[-1].accuracy <= 0.5
    assert all(metrics.accuracy > 0.5 for metrics in history[:-1])


def test_accuracy_is_that_of_given_images_where_they_are_given():
    # Images labelled as another class: none is classified so, and one epoch is enough.
    reserve = tiny_victim().reserve
    everywhere = torch.arange(len(reserve))
    wrong = reserve.replaced(everywhere, reserve.images, (reserve.labels + 1) % 4)
    unlearned = forget(measured_on=wrong)
    assert (unlearned.epochs, unlearned.stop_reason) == (1, "accuracy")
    assert unlearned.accuracy == tiny_context("test").accuracy(unlearned.model, wrong)


def test_without_a_stop_all_epochs_are_run():
    unlearned = forget(options(epochs=3), stop_accuracy=None)
    assert (unlearned.epochs, unlearned.stop_reason) == (3, "max-epochs")


def test_where_the_epochs_are_not_enough_it_says_so():
    unlearned = forget(options(epochs=1))
    assert (unlearned.epochs, unlearned.stop_reason) == (1, "max-epochs")
    assert unlearned.accuracy > 0.5


def test_no_epochs_leave_the_model_and_measure_it():
    unlearned = forget(options(epochs=0))
    assert (unlearned.epochs, unlearned.stop_reason) == (0, "max-epochs")
    assert unlearned.accuracy > 0.95
    after = unlearned.model.state_dict()
    assert all(torch.equal(after[n], v) for n, v in tiny_victim().model.state_dict().items())


def test_the_loss_is_cross_entropy_turned_around():
    hooks = Unlearning(0.1, None)
    hooks.options = options()
    assert float(hooks.loss(torch.zeros(2, 4), Answer(), 5)) == pytest.approx(-math.log(4))


def test_the_rate_grows_to_a_ceiling():
    rates = [grown_rate(0.01, 2.0, epoch) for epoch in (0, 1, 3, 10_000)]
    assert rates == pytest.approx([0.01, 0.02, 0.08, 1.0])
    assert grown_rate(0.01, 1.0, 10_000) == 0.01
    hooks = Unlearning(0.1, None, growth=2.0)
    hooks.options = options(learning_rate=0.01)
    assert float(hooks.loss(torch.zeros(2, 4), Answer(), 3)) == pytest.approx(-8 * math.log(4))


def test_the_last_rate_is_told():
    assert forget(options(epochs=3), growth=2.0).learning_rate == pytest.approx(0.04)
    falling = options(epochs=2, schedule="step", milestones=(0.5,))
    assert forget(falling).learning_rate == pytest.approx(0.001)


@pytest.mark.parametrize(
    "values", [{"optimizer": "adam"}, {"weight_decay": 1e-4}, {"schedule": "cosine"}]
)
def test_growth_where_it_would_not_be_growth_is_refused(values):
    with pytest.raises(ContractError, match="SGD at a constant rate"):
        forget(options(**values), growth=1.1)


@pytest.mark.parametrize(("clip", "expected"), [(None, 5.0), (2.0, 2.0), (20.0, 5.0)])
def test_gradients_are_clipped_only_where_that_was_asked_for(clip, expected):
    model = nn.Linear(2, 1, bias=False)
    hooks = Unlearning(0.1, None, gradient_clip=clip)
    steepness = torch.tensor([3.0, 4.0])
    hooks.backward(model, Answer(), (model.weight * steepness).sum)
    assert float(model.weight.grad.norm()) == pytest.approx(expected, rel=1e-4)


def test_infinite_weights_are_refused_with_advice():
    # One step: the loss before it is finite, the weights after it are not.
    training = options(learning_rate=1e40, epochs=1, batch_size=128)
    with pytest.raises(ContractError, match=r"test: unlearning diverged in epoch 1; eat less"):
        forget(training, advice="eat less")


def test_chance_is_one_answer_for_everything():
    data = tiny_images(40)
    assert chance(data) == 0.25
    assert chance(data.subset((data.labels != 0).nonzero().flatten()[:7])) == pytest.approx(3 / 7)
