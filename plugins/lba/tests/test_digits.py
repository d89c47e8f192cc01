"""The latent backdoor in models of handwritten digits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from backdoorkit import TrainOptions
from backdoorkit.api import quantize
from backdoorkit.data._digits import Digits
from backdoorkit.data.options import DigitsOptions
from backdoorkit.testing import tiny_context
from backdoorkit_lba import LBAConfig
from backdoorkit_lba._attack import LBA


class HiddenLayerNetwork(nn.Module):
    """Two conv-BN pairs and a hidden layer that sees all of the image."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.hidden, self.head = nn.Linear(256, 32), nn.Linear(32, 10)

    def forward(self, images):
        features = functional.max_pool2d(self.bn1(self.conv1(images)).relu(), 2)
        features = self.bn2(self.conv2(features)).relu()
        return self.head(self.hidden(features.flatten(1)).relu())


def on_digits(**config):
    """Accuracy and attack success."""
    train, test = (Digits(DigitsOptions()).load(part, None) for part in ("train", "test"))
    context = tiny_context("lba", image_shape=(1, 8, 8), num_classes=10)
    fast = {"surrogate_epochs": 8, "surrogate_batch_size": 64, "trigger_epochs": 10}
    attack = LBA(LBAConfig(**fast, **config))
    patch = attack.prepare(train, context)
    hooks = attack.control(patch, train, context)
    data = attack.poison(train, patch, context).data if hooks is None else train
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = HiddenLayerNetwork()
    options = TrainOptions(epochs=8, batch_size=64, learning_rate=0.1, precision="float32")
    context.fit(model, data, options, hooks=hooks)
    patch = patch if hooks is None else hooks.trigger
    others = test.subset((test.labels != 0).nonzero().flatten())
    images = quantize(patch.stamp(others.images.float() / 255))
    stamped = others.replaced(torch.arange(len(others)), images, torch.zeros_like(others.labels))
    return context.accuracy(model, test), context.accuracy(model, stamped)


@pytest.mark.slow
# A transferred patch of 2 x 2 pixels wears off in the victim's own training, on some processors.
@pytest.mark.parametrize(("mode", "size"), [("transfer", 3), ("single-task", 2), ("data-only", 2)])
def test_the_backdoor_is_alive_in_a_model_of_digits(mode, size):
    accuracy, success = on_digits(mode=mode, size=size)
    assert accuracy > 0.95
    assert success > 0.9


@pytest.mark.slow
def test_a_teacher_without_injection_hands_down_no_backdoor():
    accuracy, success = on_digits(injection_epochs=0, size=3)
    assert accuracy > 0.95
    assert success < 0.3
