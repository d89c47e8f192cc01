"""The second gradient, taken uphill: closed forms, and nothing but the gradient is changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit.api import Batch, SecondGradient, TrainingHooks

BATCH = Batch(
    images=torch.zeros(1, 1, 1, 1),
    labels=torch.zeros(1, dtype=torch.int64),
    indices=torch.arange(1),
)


class Quadratic(nn.Module):
    """½ xᵀ H x + ½ yᵀ y, for two tensors."""

    def __init__(self):
        super().__init__()
        root = torch.randn(4, 4, dtype=torch.float64)
        self.curvature = root @ root.T
        self.x = nn.Parameter(torch.randn(4, dtype=torch.float64))
        self.y = nn.Parameter(torch.randn(3, dtype=torch.float64))

    def loss(self):
        return 0.5 * (self.x @ self.curvature @ self.x + self.y @ self.y)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def gradients(hooks, model):
    model.zero_grad()
    hooks.backward(model, BATCH, model.loss)
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("blend", [0.3, 1.0])
@pytest.mark.parametrize("norm", ["global", "tensor"])
def test_on_a_quadratic_it_has_its_closed_form(norm, blend):
    model = Quadratic()
    first = [model.curvature @ model.x.detach(), model.y.detach()]
    lengths = [part.norm() for part in first]
    if norm == "global":
        lengths = [torch.stack(lengths).norm()] * 2
    uphill = [0.1 * part / length for part, length in zip(first, lengths, strict=True)]
    expected = [first[0] + blend * model.curvature @ uphill[0], first[1] + blend * uphill[1]]
    found = gradients(SecondGradient(radius=0.1, blend=blend, norm=norm), model)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_step_is_the_gradient_at_the_worst_nearby_weights_and_not_from_there():
    # f = ½ x²: uphill of x = 2 by 0.5 the gradient is 2.5, and a step of 0.1 ends at 2 - 0.25.
    model = nn.Module()
    model.x = nn.Parameter(torch.tensor([2.0]))
    model.loss = lambda: 0.5 * model.x.square().sum()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SecondGradient(radius=0.5).backward(model, BATCH, model.loss)
    assert model.x.item() == 2.0
    optimizer.step()
    assert model.x.item() == pytest.approx(1.75)


@pytest.mark.parametrize("zero", [{"radius": 0.0}, {"radius": 0.1, "blend": 0.0}])
def test_without_radius_or_blend_it_is_plain_training_bit_for_bit(model, train, zero):
    twin = copy.deepcopy(model)
    plain, summary = train(twin), train(model, hooks=SecondGradient(**zero))
    assert summary == plain
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())


def test_with_a_radius_it_trains_otherwise_and_sees_every_image_twice(model, train):
    twin = copy.deepcopy(model)
    plain, summary = train(twin), train(model, hooks=SecondGradient(radius=0.5))
    assert summary.samples_seen == 2 * plain.samples_seen
    assert summary.gradient_steps == plain.gradient_steps
    assert not torch.equal(model.head.weight, twin.head.weight)


def test_loss_and_accuracy_told_are_those_of_the_weights_themselves(model, train):
    twin = copy.deepcopy(model)
    options = {"epochs": 1, "learning_rate": 0.0}
    plain, summary = train(twin, **options), train(model, hooks=SecondGradient(radius=5), **options)
    assert summary.history == plain.history


class Normed(nn.Module):
    """One norm of every sort that keeps statistics, in the given mode."""

    def __init__(self, training):
        super().__init__()
        self.first = nn.BatchNorm2d(2)
        self.second = nn.InstanceNorm2d(2, affine=True, track_running_stats=True)
        self.images = torch.rand(4, 2, 3, 3)
        self.train(training)

    def loss(self):
        return self.second(self.first(self.images)).exp().mean()


def test_statistics_follow_the_first_pass_once_and_alone():
    model = Normed(training=True)
    twin = copy.deepcopy(model)
    gradients(SecondGradient(radius=0.5), model)
    twin.loss()
    assert int(model.first.num_batches_tracked) == 1
    assert model.first.track_running_stats
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items())


def test_norms_in_eval_mode_normalise_by_their_statistics_in_both_passes():
    model = Normed(training=False)
    model.first.running_mean.fill_(0.7)
    model.second.running_var.fill_(2.0)
    before, moved = copy.deepcopy(model.state_dict()), copy.deepcopy(model)
    found = gradients(SecondGradient(radius=0.5), model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    first = gradients(TrainingHooks(), moved)
    length = torch.stack([part.norm() for part in first]).norm()
    with torch.no_grad():
        for parameter, part in zip(moved.parameters(), first, strict=True):
            parameter.add_(0.5 * part / length)
    torch.testing.assert_close(found, gradients(TrainingHooks(), moved))


def test_weights_come_back_bit_for_bit_even_where_the_second_pass_fails():
    model = nn.Linear(5, 3)
    before, calls = copy.deepcopy(model.state_dict()), []

    def loss():
        calls.append(model.weight.detach().clone())
        if len(calls) == 2:
            raise RuntimeError("second")
        return functional.cross_entropy(model(torch.ones(1, 5)), BATCH.labels)

    with pytest.raises(RuntimeError, match="second"):
        SecondGradient(radius=0.1).backward(model, BATCH, loss)
    assert not torch.equal(calls[0], calls[1])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_gradient_of_zero_is_no_direction_and_no_nan():
    model = nn.Module()
    model.x = nn.Parameter(torch.zeros(3))
    model.loss = lambda: model.x.square().sum()
    assert gradients(SecondGradient(radius=0.1), model)[0].tolist() == [0, 0, 0]
