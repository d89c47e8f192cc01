"""The implicit hypergradient has the values that mathematics says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit_ibau._hypergradient import hypergradient

A, B, C, THETA, ETA = 2.0, 3.0, 0.7, 1.5, 0.1


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def scalar_hypergradient(steps, rate=ETA, direct=0.0, **options):
    """Inner ½ a δ² - b θ δ at its minimum δ = b θ / a; outer ½ (δ - c)² + ``direct`` θ."""
    theta, delta = scalar(THETA), scalar(B * THETA / A)
    inner = 0.5 * A * delta**2 - B * theta * delta
    outer = 0.5 * (delta - C) ** 2 + direct * theta
    [gradient] = hypergradient(outer, inner, delta, [theta], steps=steps, rate=rate, **options)
    return float(gradient)


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, 0.4650), (2, 0.8370), (5, 1.56314), (20, 2.29819), (300, 2.325)]
)
def test_each_number_of_steps_has_its_closed_form(steps, expected):
    exact = (B * THETA / A - C) * (B / A) * (1 - (1 - ETA * A) ** steps)
    assert scalar_hypergradient(steps) == pytest.approx(exact, rel=1e-12)
    assert scalar_hypergradient(steps) == pytest.approx(expected, abs=5e-6)


@pytest.mark.parametrize("rate", [ETA, 0.9])
def test_a_series_that_shrinks_is_summed_whole(rate):
    whole = scalar_hypergradient(5, rate=rate)
    assert scalar_hypergradient(5, rate=rate, only_shrinking=True) == whole


@pytest.mark.parametrize("rate", [1.0, 1.5])  # factors of -1 and -2 from term to term
def test_of_a_series_that_does_not_shrink_the_first_term_is_left(rate):
    first = scalar_hypergradient(1, rate=rate)
    assert scalar_hypergradient(5, rate=rate, only_shrinking=True) == pytest.approx(first)


def test_a_series_ends_where_it_begins_to_grow():
    # Two directions: one shrinks by half at each term and is large, one doubles and is small.
    theta = torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
    delta = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    curvature = torch.tensor([0.5, -1.0], dtype=torch.float64)  # J = diag(0.5, 2) at a rate of 1
    inner = 0.5 * (curvature * delta**2).sum() - theta @ delta
    outer = delta @ torch.tensor([64.0, 1.0], dtype=torch.float64)
    [gradient] = hypergradient(outer, inner, delta, [theta], steps=9, rate=1.0, only_shrinking=True)
    # Terms (64, 1), (32, 2), (16, 4), (8, 8); the next, (4, 16), is larger than (8, 8).
    assert gradient.tolist() == [120.0, 15.0]


def test_a_term_that_is_not_finite_ends_the_series():
    first = scalar_hypergradient(1, rate=1e300)
    assert scalar_hypergradient(5, rate=1e300, only_shrinking=True) == first


def test_the_direct_gradient_is_added():
    assert scalar_hypergradient(5, direct=4.0) == pytest.approx(4 + scalar_hypergradient(5))


def test_without_a_rate_it_is_the_plain_gradient():
    assert scalar_hypergradient(5, rate=0.0, direct=4.0) == 4.0


class Problem:
    """A smooth network whose input is moved by δ; everything in float64."""

    def __init__(self):
        self.network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        self.inputs, self.others = torch.randn(2, 8, 4, dtype=torch.float64)
        self.labels = torch.randint(0, 3, (8,))
        self.names = [name for name, _ in self.network.named_parameters()]
        self.theta = tuple(self.network.parameters())
        self.delta = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)

    def logits(self, delta, theta, inputs):
        named = dict(zip(self.names, theta, strict=True))
        return torch.func.functional_call(self.network, named, (inputs + delta,))

    def inner(self, delta, *theta, penalty=0.3):
        loss = functional.cross_entropy(self.logits(delta, theta, self.inputs), self.labels)
        return penalty * delta.square().sum() - loss

    def outer(self, delta, *theta):
        return functional.cross_entropy(self.logits(delta, theta, self.others), self.labels)

    def hypergradient(self, steps, rate):
        return hypergradient(
            self.outer(self.delta, *self.theta),
            self.inner(self.delta, *self.theta),
            self.delta,
            self.theta,
            steps=steps,
            rate=rate,
        )


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_it_equals_the_series_of_dense_jacobians(steps):
    problem, rate = Problem(), 0.2

    def phi(delta, *theta):
        (slope,) = torch.autograd.grad(problem.inner(delta, *theta), delta, create_graph=True)
        return (delta - rate * slope).flatten()

    by_delta, *by_theta = torch.autograd.functional.jacobian(phi, (problem.delta, *problem.theta))
    g, *direct = torch.autograd.grad(
        problem.outer(problem.delta, *problem.theta), [problem.delta, *problem.theta]
    )
    jacobian, g = by_delta.reshape(4, 4), g.flatten()
    v = sum(torch.linalg.matrix_power(jacobian.T, power) @ g for power in range(steps))
    for ours, plain, rows in zip(problem.hypergradient(steps, rate), direct, by_theta, strict=True):
        expected = plain + torch.tensordot(v, rows, dims=1)
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_many_steps_give_the_slope_of_the_outer_loss_at_the_moving_minimum():
    problem = Problem()

    def minimum(theta):
        delta = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
        for _ in range(400):
            (slope,) = torch.autograd.grad(problem.inner(delta, *theta, penalty=2.0), delta)
            delta = (delta - 0.1 * slope).detach().requires_grad_()
        return delta

    def value(shift):
        theta = [problem.theta[0] + shift * direction, *problem.theta[1:]]
        return float(problem.outer(minimum(theta), *theta).detach())

    direction = torch.randn_like(problem.theta[0])
    delta = minimum(problem.theta)
    first, *_ = hypergradient(
        problem.outer(delta, *problem.theta),
        problem.inner(delta, *problem.theta, penalty=2.0),
        delta,
        problem.theta,
        steps=400,
        rate=0.1,
    )
    measured = (value(1e-4) - value(-1e-4)) / 2e-4
    assert float((first * direction).sum()) == pytest.approx(measured, rel=1e-5)


def test_a_parameter_without_a_part_gets_zeros():
    theta, idle, delta = scalar(THETA), scalar(1.0), scalar(0.5)
    inner = 0.5 * A * delta**2 - B * theta * delta
    outer = 0.5 * (delta - C) ** 2
    assert hypergradient(outer, inner, delta, [theta, idle], steps=3, rate=ETA)[1] == 0


def test_gradients_carry_no_graph_and_leave_none_behind():
    problem = Problem()
    assert not any(gradient.requires_grad for gradient in problem.hypergradient(3, 0.1))
    assert problem.delta.grad is None
    assert all(parameter.grad is None for parameter in problem.theta)
