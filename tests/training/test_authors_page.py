"""The examples of the authors' page on the training loop run, and do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from backdoorkit import TrainOptions
from backdoorkit.context import Context
from backdoorkit.training import TrainingHooks, fit

CPU = torch.device("cpu")
PAGE = Path(__file__).parents[2] / "docs" / "authors" / "training-loop.md"


@pytest.fixture(scope="module")
def examples() -> dict:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_pruned_weights_stay_zero(examples, model, train):
    with torch.no_grad():
        model.head.weight[1] = 0.0
    before = model.head.weight.detach().clone()
    train(model, hooks=examples["KeepZeros"](model))
    assert torch.equal(model.head.weight[1], before[1])
    assert not torch.equal(model.head.weight[0], before[0])


def test_two_gradients_are_taken_and_the_weights_come_back(examples, model, train):
    summary = train(model, hooks=examples["SharpnessAware"](), epochs=15, learning_rate=0.1)
    assert summary.samples_seen == 2 * 15 * 37
    assert summary.history[-1].loss < summary.history[0].loss


def test_ascent_ends_at_chance(examples, model, data, train):
    train(model, epochs=15, learning_rate=0.1)
    context = Context(method="example", seed=0, device=CPU)
    assert context.accuracy(model, data) > 0.9
    hooks = examples["UntilChance"](context, data)
    assert train(model, hooks=hooks, epochs=100, learning_rate=0.05).stopped_early
    assert context.accuracy(model, data) <= 1 / 3


def test_mean_losses_are_kept_with_the_training(examples, model, data, train, slot):
    hooks = examples["MeanLoss"](len(data), CPU)
    summary = train(model, hooks=hooks, epochs=2, checkpoint=slot)
    total = sum(metrics.loss for metrics in summary.history) * len(data)
    assert float(hooks.total.sum()) == pytest.approx(total, rel=1e-5)
    again = examples["MeanLoss"](len(data), CPU)
    train(model, hooks=again, epochs=2, checkpoint=slot)
    assert torch.equal(again.total, hooks.total)


def test_every_hook_is_on_the_page():
    public = {name for name, hook in vars(TrainingHooks).items() if callable(hook)}
    public = {name for name in public if not name.startswith("_")}
    text = PAGE.read_text(encoding="utf-8")
    assert {name for name in public if f"`{name}(" not in text} == set()


def test_what_the_page_says_of_freezing_is_so(model, data):
    model.convolution.requires_grad_(False)
    before = model.convolution.weight.detach().clone()
    fit(
        model,
        data,
        TrainOptions(epochs=1),
        device=CPU,
        shuffle_generator=torch.Generator().manual_seed(0),
        augmentation_generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(model.convolution.weight, before)
