"""Curves through weight space, on answers that are known."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from backdoorkit.api import ImageSet, batches
from backdoorkit.testing import tiny_context, tiny_images, tiny_network
from backdoorkit_mcr import MCRConfig
from backdoorkit_mcr._curve import Curve, flatten, linear_points, point_weights
from backdoorkit_mcr._training import CurveTraining, late_decay

SHAPES = ("bezier", "polygonal")


def train(curve, data, *, seed=0, penalty=0.0, decays_late=False, **options):
    options = {"precision": "float32", "weight_decay": 0.0, **options}
    hooks = CurveTraining(
        curve,
        penalty=penalty,
        decays_late=decays_late,
        generator=torch.Generator().manual_seed(seed),
    )
    return tiny_context("mcr").fit(curve, data, MCRConfig(**options), hooks=hooks)


def statistics_moved(seed):
    """A network in eval mode whose batch norms are not in their first state."""
    model = tiny_network(seed).train()
    model(tiny_images(32, seed=seed).images.float() / 255)
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("points", [3, 4, 7])
def test_points_weigh_nothing_negative_and_one_together(shape, points):
    for t in torch.linspace(0, 1, 23).tolist():
        weights = point_weights(shape, points, t)
        assert len(weights) == points
        assert float(weights.min()) >= 0
        assert float(weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("points", [3, 5])
def test_at_the_ends_there_is_only_the_end(shape, points):
    one_hot = torch.eye(points, dtype=torch.float64)
    assert torch.equal(point_weights(shape, points, 0.0), one_hot[0])
    assert torch.equal(point_weights(shape, points, 1.0), one_hot[-1])


def test_a_polygonal_chain_passes_through_its_points():
    for j in range(5):
        torch.testing.assert_close(
            point_weights("polygonal", 5, j / 4), torch.eye(5, dtype=torch.float64)[j]
        )


def test_a_bezier_curve_of_three_points_has_the_known_weights():
    expected = torch.tensor([0.81, 0.18, 0.01], dtype=torch.float64)
    torch.testing.assert_close(point_weights("bezier", 3, 0.1), expected)


def test_over_all_t_each_point_of_a_bezier_curve_weighs_the_same():
    middles = (torch.arange(1000) + 0.5) / 1000
    mean = torch.stack([point_weights("bezier", 3, t) for t in middles.tolist()]).mean(dim=0)
    torch.testing.assert_close(
        mean, torch.full((3,), 1 / 3, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_points_on_a_line_are_at_equal_distances():
    line = linear_points(torch.tensor([0.0, 2.0]), torch.tensor([3.0, -1.0]), 4)
    expected = torch.tensor([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0], [3.0, -1.0]])
    torch.testing.assert_close(line, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_at_its_ends_the_curve_gives_the_logits_of_its_ends(shape):
    start, end = statistics_moved(0), statistics_moved(1)
    curve = Curve(start, end, shape, 4)
    nn.init.normal_(curve.inner)
    images = tiny_images(16).images.float() / 255
    for t, model in ((0.0, start), (1.0, end)):
        found = copy.deepcopy(model)  # with its own batch-norm statistics
        for parameter in found.parameters():
            nn.init.zeros_(parameter)
        curve.write(t, found)
        torch.testing.assert_close(found(images), model(images), atol=1e-5, rtol=0)


def test_in_train_mode_the_curve_computes_what_a_network_with_its_weights_does():
    start, end = statistics_moved(0), statistics_moved(1)
    curve = Curve(start, end, "bezier", 3).train()
    model = copy.deepcopy(start).train()
    curve.write(0.3, model)
    images = tiny_images(16).images.float() / 255
    torch.testing.assert_close(curve(images), model(images))


def test_the_gradient_of_a_point_is_its_weight_times_the_gradient_of_the_weights():
    curve = Curve(statistics_moved(0), statistics_moved(1), "bezier", 3)
    model = statistics_moved(0)
    curve.write(0.3, model)
    batch = next(batches(tiny_images(16), 16))
    for network in (curve.eval(), model):
        nn.functional.cross_entropy(network(batch.images), batch.labels).backward()
    expected = 2 * 0.3 * 0.7 * flatten({n: p.grad for n, p in model.named_parameters()})
    torch.testing.assert_close(curve.inner.grad[0], expected, rtol=1e-4, atol=1e-6)


def test_training_moves_only_the_points_in_between():
    start, end = statistics_moved(0), statistics_moved(1)
    before = [copy.deepcopy(model.state_dict()) for model in (start, end)]
    curve = Curve(start, end, "bezier", 4)
    ends, inner = (curve.start.clone(), curve.end.clone()), curve.inner.detach().clone()
    train(curve, tiny_images(32), epochs=1, batch_size=8)
    assert torch.equal(curve.start, ends[0])
    assert torch.equal(curve.end, ends[1])
    assert all(not torch.equal(new, old) for new, old in zip(curve.inner, inner, strict=True))
    for model, state in zip((start, end), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("shape", SHAPES)
def test_between_equal_ends_an_untrained_curve_is_one_model(shape):
    model = statistics_moved(0)
    curve = Curve(model, model, shape, 3)
    train(curve, tiny_images(32), epochs=1, learning_rate=0.0)
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        found = copy.deepcopy(model)
        curve.write(t, found)
        for ours, theirs in zip(found.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_trained_point_reaches_the_minimum_of_a_quadratic_loss():
    # With a single class the cross-entropy is zero and the penalty ½ ‖φ(t)‖² is all there is:
    # E[c₁ φ(t)] = 0 where θ · 2/15 + (w₀ + w₁) / 10 = 0.
    start, end = (nn.Sequential(nn.Flatten(), nn.Linear(1, 1)) for _ in range(2))
    for model, weight, bias in ((start, 1.0, -2.0), (end, 3.0, 1.0)):
        nn.init.constant_(model[1].weight, weight)
        nn.init.constant_(model[1].bias, bias)
    curve = Curve(start, end, "bezier", 3)
    data = ImageSet.from_tensors(
        torch.zeros(200, 1, 1, 1, dtype=torch.uint8),
        torch.zeros(200, dtype=torch.int64),
        num_classes=1,
    )
    train(
        curve,
        data,
        penalty=1.0,
        decays_late=True,
        epochs=6,
        batch_size=1,
        learning_rate=0.1,
        momentum=0.0,
    )
    torch.testing.assert_close(curve.inner[0], torch.tensor([-3.0, 0.75]), atol=0.15, rtol=0)


def test_every_batch_is_at_a_place_of_its_own(monkeypatch):
    places = []
    move_to = Curve.move_to

    def spy(curve, t):
        places.append(t)
        move_to(curve, t)

    monkeypatch.setattr(Curve, "move_to", spy)
    curve = Curve(tiny_network(0), tiny_network(1), "bezier", 3)
    summary = train(curve, tiny_images(64), epochs=5, batch_size=4)
    assert len(places) == len(set(places)) == summary.gradient_steps == 80
    assert 0 <= min(places) < 0.2
    assert 0.8 < max(places) < 1


def test_the_penalty_is_on_the_weights_at_t():
    curve = Curve(tiny_network(0), tiny_network(1), "bezier", 3)
    curve.move_to(0.5)
    hooks = CurveTraining(curve, penalty=0.1, decays_late=False, generator=torch.Generator())
    batch = next(batches(tiny_images(4), 4))
    logits = torch.zeros(4, 4)
    expected = nn.functional.cross_entropy(logits, batch.labels) + 0.05 * (
        (0.25 * curve.start + 0.5 * curve.inner[0] + 0.25 * curve.end).square().sum()
    )
    torch.testing.assert_close(hooks.loss(logits, batch, 0), expected)


def test_accumulated_gradients_are_never_reset():
    # Equal ends and no labels to learn: L = ½ ‖φ(t)‖² has the gradient c₁(t) (w₀ + c₁(t) (θ - w₀)).
    def trained(accumulates):
        start = tiny_network(0)
        curve, steps = Curve(start, start, "bezier", 3), []

        class Steps(CurveTraining):
            def loss(self, logits, batch, epoch):
                del logits, batch, epoch
                return self._curve.weights().square().sum() / 2

            def after_step(self, model):
                steps.append(model.inner.detach().clone())

        hooks = Steps(
            curve,
            penalty=0.0,
            decays_late=False,
            generator=torch.Generator().manual_seed(0),
            accumulates=accumulates,
        )
        options = {"epochs": 3, "batch_size": 16, "learning_rate": 0.1, "momentum": 0.0}
        config = MCRConfig(weight_decay=0.0, precision="float32", **options)
        tiny_context("mcr").fit(curve, tiny_images(16), config, hooks=hooks)
        return curve.start, steps

    generator = torch.Generator().manual_seed(0)
    places = [float(torch.rand((), generator=generator)) for _ in range(3)]
    for accumulates in (False, True):
        start, steps = trained(accumulates)
        point, total = start, torch.zeros_like(start)
        for t, step in zip(places, steps, strict=True):
            weight = 2 * t * (1 - t)
            gradient = weight * (start + weight * (point - start))
            total = total + gradient
            point = point - 0.1 * (total if accumulates else gradient)
            torch.testing.assert_close(step[0], point, rtol=1e-4, atol=1e-6)


def test_late_decay_is_that_of_curve_finding():
    factors = [late_decay(progress) for progress in (0.0, 0.5, 0.7, 0.9, 0.95, 1.0)]
    assert factors == pytest.approx([1.0, 1.0, 0.505, 0.01, 0.01, 0.01])


def test_late_decay_makes_the_last_steps_small():
    def moved(decays_late):
        curve = Curve(tiny_network(0), tiny_network(1), "bezier", 3)
        steps = []

        class Steps(CurveTraining):
            def after_step(self, model):
                steps.append(model.inner.clone())

        hooks = Steps(
            curve, penalty=0.0, decays_late=decays_late, generator=torch.Generator().manual_seed(0)
        )
        config = MCRConfig(epochs=20, batch_size=16, momentum=0.0, weight_decay=0.0)
        tiny_context("mcr").fit(curve, tiny_images(16), config, hooks=hooks)
        return [float((b - a).norm()) for a, b in itertools.pairwise(steps)]

    plain, late = moved(False), moved(True)
    assert late[:9] == pytest.approx(plain[:9])
    assert late[-1] == pytest.approx(0.01 * plain[-1], rel=0.2)


def test_weights_shared_between_layers_are_one_point():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.register_parameter("count", nn.Parameter(torch.tensor([7]), requires_grad=False))

        def forward(self, values):
            return self.second(self.first(values)) + self.count

    start, end = Tied(), Tied()
    curve = Curve(start, end, "bezier", 3)
    assert curve.inner.shape == (1, 16 + 4 + 4)
    found = copy.deepcopy(start)
    curve.write(1.0, found)
    assert found.second.weight is found.first.weight
    values = torch.rand(3, 4)
    torch.testing.assert_close(found(values), end(values))
    curve.move_to(1.0)
    torch.testing.assert_close(curve(values), end(values))
