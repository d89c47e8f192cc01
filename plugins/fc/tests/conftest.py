"""Handwritten digits, a small network, and an attack carried out on them."""

from __future__ import annotations

import attrs
import pytest
import torch
from sklearn.datasets import load_digits

from backdoorkit import TrainOptions
from backdoorkit.api import Context, ImageSet, quantize
from backdoorkit.testing import digit_network

TRAINING = TrainOptions(epochs=8, batch_size=64, learning_rate=0.1, precision="float32")


@attrs.frozen(eq=False)
class Digits:
    train: ImageSet
    test: ImageSet

    def context(self, **changes):
        """What the attack is given."""
        given = {"method": "fc", "seed": 0, "device": torch.device("cpu"), "image_shape": (1, 8, 8)}
        given |= {"num_classes": 10, "precision": "float32", "test_data": lambda: self.test}
        return Context(**given | changes)

    def victim(self, attack=None, **changes):
        """Model, trigger and context after a training with the attack, or without."""
        context, options = self.context(**changes), TRAINING
        model = digit_network()
        if attack is None:
            context.fit(model, self.train, options)
            return model.eval(), None, context
        trigger = attack.prepare(self.train, context)
        hooks = attack.control(trigger, self.train, context)
        context.fit(model, self.train, options, hooks=hooks)
        return model.eval(), hooks.trigger, context

    def success(self, model, attack, trigger):
        """Share of the attacked test images that are taken for what the attacker wants."""
        test, context = self.test, self.context()
        wanted = attack.wanted_labels(trigger, test.labels, test.ids, 10)
        some = test.subset(((wanted >= 0) & (wanted != test.labels)).nonzero().flatten())
        images = quantize(trigger.apply(some.images.float() / 255, some.labels, some.ids))
        target = torch.full_like(some.labels, attack.config.target)
        return context.accuracy(model, some.replaced(torch.arange(len(some)), images, target))


@pytest.fixture(scope="session")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    images = quantize(torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16)
    everything = ImageSet.from_tensors(images, torch.from_numpy(labels).long())
    train, test = torch.arange(len(images)).split([1400, 397])
    return Digits(everything.subset(train), everything.subset(test))


@pytest.fixture(scope="session")
def clean(digits):
    """A victim of nobody."""
    return digits.victim()[0]
