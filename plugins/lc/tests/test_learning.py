"""A tiny victim learns the trigger."""

from __future__ import annotations

import pytest
import torch

from backdoorkit import TrainOptions
from backdoorkit.api import quantize
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images, tiny_network
from backdoorkit_lc import LCConfig
from backdoorkit_lc._attack import LC

SHARE = {"rate_basis": "target-class", "poison_rate": 0.8, "size": 4}
ADVERSARIAL = {"epsilon": 64.0, "step_size": 12.0, "steps": 10, "surrogate_epochs": 2}
INTERPOLATED = {"images": "interpolated", "interpolation": 0.6, "autoencoder_epochs": 40}


def learned(attack, *, epochs):
    """Accuracy per class, and attack success on class 0, of a tiny victim of ``attack``."""
    context, data, test = tiny_context("lc"), tiny_images(512), tiny_images(200, seed=9)
    trigger = attack.prepare(data, context)
    victim = tiny_network()
    options = TrainOptions(epochs=epochs, batch_size=32, learning_rate=0.1, precision="float32")
    context.fit(victim, attack.poison(data, trigger, context).data, options)
    images = test.images.float() / 255
    stored = quantize(trigger.apply(images, test.labels, test.ids))
    triggered = test.replaced(torch.arange(200), stored, test.labels)
    right = context.predict(victim, test).argmax(1) == test.labels
    fooled = context.predict(victim, triggered).argmax(1)[test.labels != 0] == 0
    per_class = [right[test.labels == label].float().mean().item() for label in range(4)]
    return per_class, fooled.float().mean().item()


@pytest.mark.parametrize("config", [ADVERSARIAL, INTERPOLATED], ids=["adversarial", "interpolated"])
def test_patches_are_learned_where_the_images_are_hard(config):
    accuracy, success = learned(LC(structure(LCConfig, SHARE | config)), epochs=10)
    assert min(accuracy) > 0.95
    assert success > 0.9


def test_patches_are_ignored_where_the_images_are_as_they_were():
    accuracy, success = learned(LC(structure(LCConfig, SHARE | {"images": "plain"})), epochs=10)
    assert min(accuracy) > 0.95
    assert success < 0.5
