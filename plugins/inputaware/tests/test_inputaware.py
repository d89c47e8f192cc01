"""Generators, triggers and crosses, and what the joint training does with them."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch

from backdoorkit import IndexPolicy, TrainOptions
from backdoorkit.api import Batch, InputError, SampleKind
from backdoorkit.hooks.options import structure
from backdoorkit.testing import (
    MemorySlot,
    TrainingCutError,
    tiny_context,
    tiny_images,
    tiny_network,
)
from backdoorkit_inputaware import InputAwareConfig, backdoorkit_attacks
from backdoorkit_inputaware._attack import InputAware
from backdoorkit_inputaware._joint import JointTraining
from backdoorkit_inputaware._masks import mask_loss, rate_at, train_masks
from backdoorkit_inputaware._networks import (
    blended,
    diversity_loss,
    sharpened,
)

TINY = {"width": 4, "depth": 2, "mask_epochs": 0, "donors": 8}
OPTIONS = TrainOptions(epochs=2, batch_size=32, learning_rate=0.05, precision="float32")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def attack_of(**config):
    return InputAware(InputAwareConfig(**{**TINY, **config}))


def prepared(data, **config):
    attack = attack_of(**config)
    return attack, attack.prepare(data, tiny_context("inputaware"))


def applied(trigger, data):
    return trigger.apply(data.images.float() / 255, data.labels, data.ids)


def batch_of(data):
    return Batch(data.images.float() / 255, data.labels, torch.arange(len(data)))


# -- arithmetic ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (0.4, 0.018), (0.5, 0.5), (0.6, 0.982), (1, 1)]
)
def test_sharpening_is_the_published_function(value, expected):
    assert float(sharpened(torch.tensor(float(value)))) == pytest.approx(expected, abs=5e-4)


def test_an_empty_mask_is_the_identity_and_a_full_one_the_pattern():
    images, patterns = torch.rand(2, 3, 4, 4, generator=seeded()), torch.rand(2, 3, 4, 4)
    assert torch.equal(blended(images, patterns, torch.zeros(2, 1, 4, 4)), images)
    full = blended(images, patterns, torch.ones(2, 1, 4, 4))
    assert torch.allclose(full, patterns, atol=1e-6)


def test_diversity_is_a_ratio_of_distances():
    """Distances of pixels 0.3 and 0.5, of outputs 0.1 and 0.25: mean of 3 and 2."""
    images = torch.zeros(2, 3, 2, 2)
    others = torch.tensor([0.3, 0.5]).view(2, 1, 1, 1) + images
    made = torch.zeros(2, 1, 2, 2)
    second = torch.tensor([0.1, 0.25]).view(2, 1, 1, 1) + made
    assert float(diversity_loss(images, others, made, second)) == pytest.approx(2.5, rel=1e-5)


def test_equal_outputs_give_a_finite_loss_and_no_gradient():
    images = torch.rand(2, 3, 2, 2, generator=seeded())
    made = torch.ones(2, 1, 2, 2, requires_grad=True)
    loss = diversity_loss(images[:1], images[1:], made[:1], made[1:])
    loss.backward()
    assert loss.isfinite()
    assert made.grad.isfinite().all()


def test_rate_drops_at_the_milestones():
    rates = [rate_at(0.01, (0.4, 0.8), epoch / 25) for epoch in (0, 9, 10, 19, 20, 24)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


# -- masks -----------------------------------------------------------------------------------------


class Grey(torch.nn.Module):
    """As a mask, the mean of the image."""

    def forward(self, images):
        return images.mean(dim=1, keepdim=True)


def test_mask_loss_by_hand():
    """Masks h(0.5) = 0.5 and h(0.45) = 0.1192, images 0.05 apart."""
    config = InputAwareConfig(mask_density=0.1, mask_norm=10.0, mask_diversity=2.0)
    first, second = torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), 0.45)
    # The size of the second images' masks does not count.
    expected = 10 * (0.5 - 0.1) + 2 * 0.05 / (0.5 - 0.1192)
    loss = float(mask_loss(Grey(), first, second, config))
    assert loss == pytest.approx(expected, rel=1e-3)


def test_mask_training_brings_the_masks_down_to_their_density():
    data = tiny_images(128)
    config = InputAwareConfig(
        width=4, depth=2, mask_epochs=20, mask_batch_size=32, mask_diversity=0.5
    )
    context = tiny_context("inputaware")
    made = train_masks(data, config, context)
    assert 0.016 < float(made["density"]) < 0.064
    assert context.gradient_steps == 20 * 4
    assert context.samples_seen == 20 * 4 * 64


def test_prepare_notes_the_density_that_was_reached():
    context = tiny_context("inputaware")
    attack_of().prepare(tiny_images(32), context)
    assert 0 <= context.notes["mask_density"] <= 1
    assert [asset.name for asset in context.assets] == ["mask-generator"]


# -- triggers --------------------------------------------------------------------------------------


def test_the_trigger_is_the_blend_of_pattern_and_sharpened_mask():
    data = tiny_images(6)
    _, trigger = prepared(data)
    images = data.images.float() / 255
    mask = sharpened(trigger.masks(images))
    expected = images + (trigger.patterns(images) - images) * mask
    assert torch.allclose(applied(trigger, data), expected, atol=1e-6)


class Through(torch.nn.Module):
    """A pattern generator whose pattern is the image."""

    def forward(self, images):
        return images


class Everywhere(torch.nn.Module):
    """A mask generator that masks everything."""

    def forward(self, images):
        return torch.ones_like(images[:, :1])


def telling(data, **config):
    """A trigger that replaces an image by the one that the trigger was made for."""
    attack, trigger = prepared(data, **config)
    return attack, attrs.evolve(trigger, patterns=Through(), masks=Everywhere())


def test_a_cross_bears_the_trigger_of_a_donor():
    data = tiny_images(20)
    attack, trigger = telling(data, donors=2)
    made = applied(attack.cover(trigger), data)
    donors = trigger.donors.float() / 255
    is_donor = torch.stack([(made - donor).abs().amax(dim=(1, 2, 3)) < 1e-6 for donor in donors])
    assert is_donor.any(dim=0).all()
    assert is_donor.any(dim=1).all()


def test_no_image_is_its_own_donor():
    data = tiny_images(8)
    attack, trigger = telling(data, donors=8)
    assert torch.allclose(applied(trigger, data), data.images.float() / 255, atol=1e-6)
    for epoch in range(6):
        made = applied(attack.cover(trigger, epoch), data)
        assert ((made - data.images.float() / 255).abs().amax(dim=(1, 2, 3)) > 0.01).all()


def test_donors_are_drawn_anew_in_every_epoch():
    data = tiny_images(20)
    attack, trigger = telling(data)
    first, again, other = (applied(attack.cover(trigger, epoch), data) for epoch in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_images_of_another_size_are_refused():
    _, trigger = prepared(tiny_images(8))
    with pytest.raises(InputError, match="made for 3x16x16 images, not 3x28x28"):
        applied(trigger, tiny_images(4, image_shape=(3, 28, 28)))


# -- the joint training ----------------------------------------------------------------------------


def hooks_for(data, **config):
    attack, trigger = prepared(data, **config)
    hooks = attack.control(trigger, data, tiny_context("inputaware"))
    assert isinstance(hooks, JointTraining)
    hooks.options = OPTIONS
    return hooks, trigger


def test_a_batch_has_its_poisoned_images_then_crosses_then_clean_ones():
    """Of 128: 12, 12 and 104. Before the first step, the generator is the one of the trigger."""
    data = tiny_images(128)
    hooks, trigger = hooks_for(data, target=3)
    hooks._patterns.eval()  # as the trigger uses it
    batch = batch_of(data)
    made = hooks.transform_batch(batch, 0)
    assert made.labels[:12].tolist() == [3] * 12
    assert torch.equal(made.labels[12:], batch.labels[12:])
    own = trigger.transferred(batch.images[:12], batch.images[:12])
    assert torch.allclose(made.images[:12], own, atol=1e-5)
    crossed = trigger.transferred(batch.images[12:24], batch.images[76:88])
    assert torch.allclose(made.images[12:24], crossed, atol=1e-5)
    assert torch.equal(made.images[24:], batch.images[24:])


def test_covers_are_as_many_as_the_ratio_says_and_may_be_none():
    data = tiny_images(60)
    for ratio, altered in ((0.0, 6), (0.5, 9), (2.0, 18)):
        hooks, _ = hooks_for(data, cover_ratio=ratio)
        batch = batch_of(data)
        made = hooks.transform_batch(batch, 0)
        changed = (made.images != batch.images).flatten(1).any(dim=1)
        assert changed.nonzero().flatten().tolist() == list(range(altered))
        assert hooks._diversity is not None


def gradient_after(hooks, batch, model, epoch=0):
    made = hooks.transform_batch(batch, epoch)
    hooks.backward(model, made, lambda: hooks.loss(model(made.images), made, epoch))
    return [parameter.grad for parameter in hooks._patterns.parameters()]


def test_gradient_reaches_the_pattern_generator_and_the_victim_but_never_the_masks():
    data = tiny_images(40)
    hooks, _ = hooks_for(data, diversity=0.0)
    model = tiny_network()
    gradients = gradient_after(hooks, batch_of(data), model)
    assert any(float(gradient.abs().max()) > 0 for gradient in gradients)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in hooks._learned.masks.parameters())


def test_diversity_alone_reaches_the_pattern_generator():
    data = tiny_images(40)
    hooks, _ = hooks_for(data)
    hooks.transform_batch(batch_of(data), 0)
    hooks._diversity.backward()
    assert any(float(p.grad.abs().max()) > 0 for p in hooks._patterns.parameters())


def test_without_poison_nothing_is_learned_or_altered():
    data = tiny_images(40)
    hooks, _ = hooks_for(data, poison_rate=0.0)
    batch = batch_of(data)
    assert hooks.transform_batch(batch, 0) is batch
    assert gradient_after(hooks, batch, tiny_network()) == [None] * 36


def test_gradients_are_cleared_unless_they_are_to_accumulate():
    data, model = tiny_images(40), tiny_network().eval()
    for accumulates in (False, True):
        hooks, _ = hooks_for(data, accumulate_gradients=accumulates)
        hooks._patterns.eval()
        first = [g.clone() for g in gradient_after(hooks, batch_of(data), model)]
        second = gradient_after(hooks, batch_of(data), model)
        factor = 2 if accumulates else 1
        # The victim's weights do not change here, so the second gradient equals the first.
        assert torch.allclose(second[0], factor * first[0], rtol=1e-3, atol=1e-6)


def test_a_batch_without_a_poisoned_image_is_refused():
    data = tiny_images(40)
    hooks, _ = hooks_for(data, poison_rate=0.03)
    with pytest.raises(InputError, match="no image"):
        hooks.transform_batch(batch_of(data), 0)


def test_training_changes_the_patterns_and_leaves_the_masks():
    data, context = tiny_images(64), tiny_context("inputaware")
    attack, trigger = prepared(data)
    before = copy.deepcopy(trigger.state())
    hooks = attack.control(trigger, data, context)
    context.fit(tiny_network(), data, OPTIONS, hooks=hooks)
    after, learned = trigger.state(), hooks.trigger.state()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not torch.equal(
        learned["patterns.middle.conv.weight"], before["patterns.middle.conv.weight"]
    )
    assert all(
        torch.equal(learned[name], value)
        for name, value in before.items()
        if not name.startswith("patterns.")
    )
    assert not hooks.trigger.patterns.training


@pytest.mark.parametrize("accumulates", [False, True])
def test_an_interrupted_training_ends_with_the_same_bits(accumulates):
    data = tiny_images(64)

    def train(slot):
        context = tiny_context("inputaware")
        attack, trigger = prepared(data, accumulate_gradients=accumulates)
        hooks, model = attack.control(trigger, data, context), tiny_network()
        context.fit(model, data, OPTIONS, hooks=hooks, checkpoint=slot)
        return {**model.state_dict(), **hooks.trigger.state()}

    whole, slot = train(None), MemorySlot(cut_after=1)
    with pytest.raises(TrainingCutError):
        train(slot)
    resumed = train(slot)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    # Once more, with nothing left to do: the trigger is still the learned one.
    again = train(slot)
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_freezing_gives_a_set_with_crosses_of_any_rate():
    data = tiny_images(200)
    attack, trigger = prepared(data, target=1)
    frozen = attack.freeze(data, trigger, tiny_context("inputaware"), rate=0.05)
    assert torch.bincount(frozen.kinds.int()).tolist() == [180, 10, 10]
    crossed = (frozen.kinds == SampleKind.COVER).nonzero().flatten()
    assert torch.equal(frozen.data.labels[crossed], data.labels[crossed])
    assert (frozen.data.labels[frozen.poisoned_positions] == 1).all()


# -- options ---------------------------------------------------------------------------------------


def test_every_preset_controls_the_training():
    (info,) = backdoorkit_attacks()
    for values in info.presets.values():
        config = structure(InputAwareConfig, values)
        assert config.controls_training
        assert config.own_covers


def test_a_fixed_index_policy_is_refused():
    with pytest.raises(ValueError, match="learned in the victim's training"):
        InputAwareConfig(index_policy=IndexPolicy.FIXED)


def test_an_asset_is_made_again_where_an_option_of_it_changed():
    from backdoorkit_inputaware._attack import _mask_facts

    facts = _mask_facts(InputAwareConfig())
    changed = {
        field.name
        for field in attrs.fields(InputAwareConfig)
        if field.name.startswith("mask_") or field.name in ("width", "depth")
    }
    assert set(facts) == changed
