"""Stage 2: the blended gradient is what the penalty's exact gradient says it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit.api import Batch, TrainingHooks
from backdoorkit_tsbd._activeness import ActivenessAwareTuning

BATCH = Batch(
    images=torch.zeros(1, 1, 1, 1),
    labels=torch.zeros(1, dtype=torch.int64),
    indices=torch.arange(1),
)


class Quadratic(nn.Module):
    """½ θᵀHθ."""

    def __init__(self, curvature):
        super().__init__()
        self.curvature = curvature
        self.weight = nn.Parameter(torch.randn(len(curvature), dtype=torch.float64))

    def loss(self):
        return 0.5 * self.weight @ self.curvature @ self.weight


class Network(nn.Module):
    """A small smooth network in float64 with its own batch."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
        self.images = torch.randn(16, 5, dtype=torch.float64)
        self.labels = torch.randint(0, 3, (16,))

    def loss(self):
        return functional.cross_entropy(self.body(self.images), self.labels)


class BatchNormNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36 * 4, 3)
        )
        self.images = torch.rand(6, 1, 8, 8)
        self.labels = torch.randint(0, 3, (6,))

    def loss(self):
        return functional.cross_entropy(self.body(self.images), self.labels)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def tuning(*, perturbation=0.05, blend=0.7, norm="tensor"):
    return ActivenessAwareTuning(perturbation=perturbation, blend=blend, norm=norm)


def gradients(hooks, model):
    model.zero_grad()
    hooks.backward(model, BATCH, model.loss)
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("norm", ["tensor", "global"])
def test_the_penalty_of_a_quadratic_is_exact(norm):
    root = torch.randn(6, 6, dtype=torch.float64)
    model = Quadratic(root @ root.T)
    [blended] = gradients(tuning(norm=norm), model)
    first = model.curvature @ model.weight.detach()
    penalty = model.curvature @ first / first.norm()
    torch.testing.assert_close(blended, first + 0.7 * 0.05 * penalty, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["tensor", "global"])
def test_the_blend_converges_to_the_double_backward_of_the_norm(norm):
    model = Network()
    first = torch.autograd.grad(model.loss(), list(model.parameters()), create_graph=True)
    norms = torch.stack([gradient.norm() for gradient in first])
    penalty = norms.sum() if norm == "tensor" else norms.norm()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(penalty, model.parameters())])
    plain = torch.cat([gradient.detach().flatten() for gradient in first])

    errors = []
    for length in (1e-2, 1e-3):
        blended = gradients(tuning(perturbation=length, norm=norm), model)
        estimate = (torch.cat([g.flatten() for g in blended]) - plain) / (0.7 * length)
        errors.append(float((estimate - exact).norm() / exact.norm()))
    assert errors[1] < 0.02
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.3)  # first order in r


def test_the_two_norms_are_different_penalties():
    model = Network()
    tensor, whole = gradients(tuning(norm="tensor"), model), gradients(tuning(norm="global"), model)
    assert not torch.allclose(tensor[0], whole[0])


def test_without_a_share_of_the_second_gradient_it_is_plain_training():
    model = BatchNormNetwork()
    twin = copy.deepcopy(model)
    blended, plain = gradients(tuning(blend=0), model), gradients(TrainingHooks(), twin)
    assert all(torch.equal(a, b) for a, b in zip(blended, plain, strict=True))


def test_with_the_whole_share_it_is_the_gradient_at_the_perturbed_weights():
    model = Network()
    [*expected] = torch.autograd.grad(model.loss(), list(model.parameters()))
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, gradient in zip(moved.parameters(), expected, strict=True):
            parameter.add_(0.05 * gradient / gradient.norm())
    perturbed = gradients(TrainingHooks(), moved)
    for ours, theirs in zip(gradients(tuning(blend=1), model), perturbed, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_weights_return_bit_for_bit():
    model = Network()
    before = copy.deepcopy(model.state_dict())
    gradients(tuning(), model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_running_statistics_follow_the_first_pass_only():
    model = BatchNormNetwork()
    twin = copy.deepcopy(model)
    gradients(tuning(), model)
    twin.loss()
    ours, theirs = model.body[1], twin.body[1]
    assert ours.num_batches_tracked == 1
    assert ours.track_running_stats
    assert torch.equal(ours.running_mean, theirs.running_mean)
    assert torch.equal(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("norm", ["tensor", "global"])
def test_a_dead_parameter_makes_no_nan(norm):
    model = Network()
    model.dead = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    model.unused = nn.Parameter(torch.ones(2))
    alive = model.loss
    model.loss = lambda: alive() + (0 * model.dead).sum()
    tuning(norm=norm).backward(model, BATCH, model.loss)
    assert model.unused.grad is None
    assert torch.equal(model.dead.grad, torch.zeros(3, dtype=torch.float64))
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_frozen_parameters_stay_out():
    model = Network()
    model.body[0].requires_grad_(False)
    tuning().backward(model, BATCH, model.loss)
    assert model.body[0].weight.grad is None
    assert model.body[2].weight.grad.isfinite().all()
