"""The hidden trigger: no patch in training, and what it does at test time."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.api import InputError, quantize
from backdoorkit_fc import HiddenTriggerConfig
from backdoorkit_fc._hidden import HiddenTrigger

# 8 x 8 pixels leave little room: a large patch and a wide bound.
CONFIG = HiddenTriggerConfig(poison_rate=0.8, radius=64.0, size=4, source_class=4)


@pytest.fixture(scope="module")
def attacked(digits):
    return digits.victim(HiddenTrigger(CONFIG), method="hidden-trigger")


def trigger_of(digits, **config):
    attack = HiddenTrigger(HiddenTriggerConfig(**config))
    return attack.prepare(digits.train, digits.context(method="hidden-trigger"))


def test_the_patch_replaces_the_lower_right_corner(digits):
    trigger = trigger_of(digits, patch="white", size=3, offset=1)
    images = digits.test.images[:4].float() / 255
    made = quantize(trigger.apply(images, digits.test.labels[:4], digits.test.ids[:4]))
    assert (made[..., 4:7, 4:7] == 255).all()
    made[..., 4:7, 4:7] = digits.test.images[:4, :, 4:7, 4:7]
    assert torch.equal(made, digits.test.images[:4])


def test_noise_is_drawn_from_the_seed_on_the_8_bit_grid(digits):
    first, again = (trigger_of(digits, size=4) for _ in range(2))
    assert torch.equal(first.pattern, again.pattern)
    assert len(first.pattern[..., 4:, 4:].unique()) > 10
    assert torch.allclose(first.pattern, quantize(first.pattern) / 255, atol=1e-6)


def test_a_patch_that_does_not_fit_is_refused(digits):
    with pytest.raises(InputError, match="set a smaller size or offset"):
        trigger_of(digits, size=8, offset=1)


def test_no_training_image_carries_the_patch_and_the_bound_holds(digits, attacked):
    _, trigger, context = attacked
    attack = HiddenTrigger(CONFIG)
    result = attack.poison(digits.train, trigger, context)
    chosen = result.poisoned_positions
    assert len(chosen) == round(0.8 * int((digits.train.labels == 0).sum()))
    assert (digits.train.labels[chosen] == 0).all()
    assert torch.equal(result.data.labels, digits.train.labels)
    before, after = digits.train.images[chosen].int(), result.data.images[chosen].int()
    assert 0 < (after - before).abs().max() <= 64
    patch = quantize(trigger.pattern)[..., 4:, 4:].int()
    assert ((after[..., 4:, 4:] - patch).abs().amax((1, 2, 3)) > 40).all()


def test_poisons_collide_with_patched_images_of_the_source_class(digits, attacked):
    _, _, context = attacked
    notes = context.notes
    assert notes["feature_distance_of_poisons"] < 0.5 * notes["feature_distance_of_bases"]


def test_only_the_source_class_is_attacked(digits, attacked):
    _, trigger, _ = attacked
    labels = digits.test.labels
    wanted = HiddenTrigger(CONFIG).wanted_labels(trigger, labels, digits.test.ids, 10)
    assert torch.equal(wanted, torch.where(labels == 4, 0, -1))
    everyone = HiddenTrigger(HiddenTriggerConfig()).wanted_labels(trigger, labels, labels, 10)
    assert (everyone == 0).all()


def test_the_patch_works_though_it_was_never_seen(digits, attacked, clean):
    model, trigger, context = attacked
    attack = HiddenTrigger(CONFIG)
    assert digits.success(clean, attack, trigger) < 0.05
    assert digits.success(model, attack, trigger) > 0.4
    accuracies = [context.accuracy(m, digits.test) for m in (model, clean)]
    assert accuracies[0] > accuracies[1] - 0.03
