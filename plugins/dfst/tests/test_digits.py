"""Detoxification of models of handwritten digits."""

from __future__ import annotations

import pytest
import torch

from backdoorkit import TrainOptions
from backdoorkit.api import quantize
from backdoorkit.data._digits import Digits
from backdoorkit.data.options import DigitsOptions
from backdoorkit.testing import digit_network, tiny_context
from backdoorkit_dfst import DFSTConfig
from backdoorkit_dfst._attack import DFST, DetoxHooks


def on_digits(digits, **config):
    """Accuracy, attack success, and success of an injector trained against the finished model."""
    train, test = digits
    context = tiny_context("dfst", seed=1, image_shape=(1, 8, 8), num_classes=10)
    attack = DFST(DFSTConfig(**config))
    trigger = attack.prepare(train, context)
    hooks = attack.control(trigger, train, context)
    model = digit_network(seed=1)
    options = TrainOptions(epochs=8, batch_size=64, learning_rate=0.1, precision="float32")
    context.fit(model, train, options, hooks=hooks)
    model.eval()

    judge = DFST(DFSTConfig(injector_share=0.3, injector_epochs=20))
    fresh = DetoxHooks(judge, trigger, train, context)
    fresh.detoxify(model, 77)
    others = test.subset((test.labels != 0).nonzero().flatten())
    pixels, everywhere = others.images.float() / 255, torch.arange(len(others))

    def success(shown):
        images = quantize(shown.apply(pixels, others.labels, others.ids))
        stamped = others.replaced(everywhere, images, others.labels)
        return float((context.predict(model, stamped).argmax(1) == 0).float().mean())

    return (
        context.accuracy(model, test),
        success(hooks.trigger),
        success(judge.cover(fresh.trigger)),
    )


@pytest.mark.slow
def test_detoxification_spares_the_style_and_takes_shallow_cues_away():
    digits = Digits(DigitsOptions())
    both = [digits.load(part, None) for part in ("train", "test")]
    plain = on_digits(both, cover_ratio=0.0)
    detoxified = on_digits(both, cover_ratio=3.0, injector_share=0.1)
    for accuracy, success, _ in (plain, detoxified):
        assert accuracy > 0.95
        assert success > 0.95
    assert detoxified[2] < 0.5 * plain[2]
