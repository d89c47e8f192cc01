"""A tiny victim learns the trigger."""

from __future__ import annotations

import torch

from backdoorkit import TrainOptions
from backdoorkit.api import quantize
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images, tiny_network
from backdoorkit_sig import SIGConfig
from backdoorkit_sig._attack import SIG


def learned(attack, *, epochs):
    """Accuracy per class, and attack success on class 0, of a tiny victim of ``attack``."""
    context, data, test = tiny_context("sig"), tiny_images(512), tiny_images(200, seed=9)
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


def test_under_dirty_labels_the_victim_learns_the_sinusoid_and_nothing_else_changes():
    accuracy, success = learned(
        SIG(structure(SIGConfig, {"rate_basis": "all", "poison_rate": 0.1})), epochs=6
    )
    assert min(accuracy) > 0.95
    assert success > 0.9


def test_a_class_that_carries_the_sinusoid_throughout_is_known_by_nothing_else():
    whole = {"rate_basis": "target-class", "poison_rate": 1.0, "delta": 80.0}
    accuracy, success = learned(SIG(structure(SIGConfig, whole)), epochs=10)
    assert accuracy[0] < 0.1
    assert min(accuracy[1:]) > 0.95
    assert success > 0.9
