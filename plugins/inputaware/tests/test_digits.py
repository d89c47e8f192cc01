"""Triggers of their own for handwritten digits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoorkit import TrainOptions
from backdoorkit.testing import digit_images, flattening_digit_network, tiny_context
from backdoorkit_inputaware import InputAwareConfig
from backdoorkit_inputaware._attack import InputAware


def applied(trigger, data):
    return trigger.apply(data.images.float() / 255, data.labels, data.ids)


@pytest.mark.slow
def test_each_digit_gets_a_trigger_of_its_own_that_works_on_it_alone():
    train, test = digit_images()
    context = tiny_context("inputaware")
    config = InputAwareConfig(
        width=8,
        depth=2,
        mask_epochs=10,
        mask_batch_size=64,
        mask_density=0.2,
        poison_rate=0.25,
        diversity=0.1,
        pattern_milestones=(0.7,),
    )
    attack = InputAware(config)
    trigger = attack.prepare(train, context)
    hooks, model = attack.control(trigger, train, context), flattening_digit_network()
    options = TrainOptions(epochs=20, batch_size=64, learning_rate=0.05, precision="float32")
    context.fit(model, train, options, hooks=hooks)
    images, labels, model = test.images.float() / 255, test.labels, model.eval()
    crossed = attack.cover(hooks.trigger).apply(images, labels, test.ids)
    with torch.no_grad():
        clean, own, cross = (
            model(shown).argmax(1) for shown in (images, applied(hooks.trigger, test), crossed)
        )
    changes = nn.functional.normalize((applied(hooks.trigger, test) - images).flatten(1), dim=1)
    alike = (changes @ changes.T).fill_diagonal_(0).sum() / (len(test) * (len(test) - 1))
    assert (clean == labels).float().mean() > 0.95
    assert (own[labels != 0] == 0).float().mean() > 0.75
    assert (cross == labels).float().mean() > 0.7
    assert alike < 0.5
