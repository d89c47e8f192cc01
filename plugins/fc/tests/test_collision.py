"""The optimisation of poisons, on feature maps whose optimum is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoorkit.api import quantize
from backdoorkit.testing import tiny_context
from backdoorkit_fc import FCConfig
from backdoorkit_fc import _collision as collision
from backdoorkit_fc._collision import collide, objective

SHAPE = (3, 6, 6)


def images_of(count, seed=0):
    """On the 8-bit grid."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *SHAPE), generator=generator).float() / 255


def identity(images):
    return images.flatten(1)


@pytest.fixture
def curved():
    """Features that bend and saturate."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(108, 20), nn.Softplus(), nn.Linear(20, 8))
    with torch.no_grad():
        layers[3].weight.mul_(10)
    return layers.requires_grad_(False)


def made(extract, bases, goals, starts=None, **config):
    """Poisons in [0, 1]."""
    given = extract(goals)
    starts = bases if starts is None else starts
    poisons = collide(extract, starts, bases, given, FCConfig(**config), tiny_context("fc"))
    return poisons.float() / 255


def test_one_step_goes_forward_and_then_back_to_the_base():
    bases, goals = images_of(3, 1), images_of(3, 2)
    starts = torch.lerp(bases, goals, 0.5)
    rate, beta = 0.1, 0.7
    forward = starts - rate * 2 * (starts - goals)
    expected = (forward + 2 * rate * beta * bases) / (1 + 2 * rate * beta)
    poisons = made(identity, bases, goals, starts, steps=1, step_size=rate, beta=beta)
    assert (poisons - expected).abs().max() <= 0.5 / 255 + 1e-6


def test_the_objective_never_rises_for_any_poison(curved):
    bases, goals = images_of(12, 1), images_of(12, 2)
    wanted = curved(goals)
    before = objective(curved(bases), wanted, bases, bases, 0.1)
    values = []
    for steps in range(0, 30, 3):
        # A step size at which some steps overshoot.
        poisons = exact(curved, bases, wanted, steps=steps, step_size=0.5, beta=0.1)
        values.append(objective(curved(poisons), wanted, poisons, bases, 0.1))
    history = torch.stack(values)
    assert torch.equal(history[0], before)
    assert (history.diff(dim=0) <= 1e-6).all()
    assert (history[-1] < 0.5 * before).all()


def exact(extract, bases, wanted, **config):
    """Poisons before they are rounded to 8 bits."""
    context = tiny_context("fc")
    return collision._collide_chunk(extract, bases, bases, wanted, FCConfig(**config), context)


def test_every_poison_has_a_step_size_of_its_own(curved):
    bases, goals = images_of(12, 1), images_of(12, 2)
    options = {"steps": 12, "step_size": 0.5}
    together = exact(curved, bases, curved(goals), **options)
    pairs = zip(bases.split(1), goals.split(1), strict=True)
    alone = [exact(curved, base, curved(goal), **options) for base, goal in pairs]
    assert torch.allclose(together, torch.cat(alone), atol=1e-3)


def test_identity_features_without_a_pull_reach_the_goal():
    bases, goals = images_of(4, 1), images_of(4, 2)
    poisons = made(identity, bases, goals, steps=60, beta=0.0)
    assert torch.equal(quantize(poisons), quantize(goals))


def test_an_enormous_pull_keeps_the_base():
    bases, goals = images_of(4, 1), images_of(4, 2)
    starts = torch.lerp(bases, goals, 0.3)
    poisons = made(identity, bases, goals, starts, steps=5, beta=1e8)
    assert torch.equal(quantize(poisons), quantize(bases))


def test_the_pull_balances_distances_as_the_optimum_says():
    """With identity features the minimum of J is (z + β b) / (1 + β)."""
    bases, goals = images_of(4, 1), images_of(4, 2)
    poisons = made(identity, bases, goals, steps=80, beta=0.5)
    assert (poisons - (goals + 0.5 * bases) / 1.5).abs().max() <= 0.6 / 255


def test_the_papers_scale_is_the_squared_ratio_of_features_to_pixels():
    bases, goals = images_of(4, 1), images_of(4, 2)

    def half(images):
        return images.flatten(1)[:, :54]

    scaled = made(half, bases, goals, steps=40, beta=2.0, scale_beta=True)
    plain = made(half, bases, goals, steps=40, beta=2.0 * (54 / 108) ** 2)
    assert torch.equal(scaled, plain)


@pytest.mark.parametrize("radius", [0.0, 8.0, 16.0])
def test_the_bound_holds_after_rounding(radius):
    bases, goals = images_of(6, 1), images_of(6, 2)
    starts = torch.lerp(bases, goals, 0.3)
    poisons = made(identity, bases, goals, starts, steps=30, radius=radius, beta=0.0)
    change = (quantize(poisons).int() - quantize(bases).int()).abs()
    assert change.max() == radius
    # Identity features: every pixel goes as far towards its goal as it may.
    limit = (quantize(goals).int() - quantize(bases).int()).abs().clamp(max=int(radius))
    assert torch.equal(change, limit)


def test_poisons_in_chunks_are_the_same(curved, monkeypatch):
    bases, goals = images_of(7, 1), images_of(7, 2)
    whole = made(curved, bases, goals, steps=5)
    monkeypatch.setattr(collision, "_CHUNK", 0)
    assert torch.allclose(made(curved, bases, goals, steps=5), whole, atol=1.1 / 255)
