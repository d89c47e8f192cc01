"""Which images are made hard, how they are kept, and under which label they go."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.api import ImageSet, InputError, quantize
from backdoorkit.errors import ConfigError
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images
from backdoorkit_lc import LCConfig, backdoorkit_attacks
from backdoorkit_lc._attack import LC
from backdoorkit_lc._interpolation import Autoencoder, interpolate, train_autoencoder

FAST = {
    "adversarial": {"steps": 6, "step_size": 6.0, "surrogate_epochs": 2},
    "interpolated": {"images": "interpolated", "interpolation": 1.0, "autoencoder_epochs": 20},
}


def poisoned(data, context=None, **config):
    context = context or tiny_context("lc")
    attack = LC(structure(LCConfig, config))
    trigger = attack.prepare(data, context)
    return attack.poison(data, trigger, context), trigger, context


@pytest.mark.parametrize("config", FAST.values(), ids=FAST)
def test_images_of_the_target_class_are_altered_and_no_label_is(config):
    data = tiny_images(128)
    result, _, _ = poisoned(data, target=2, rate_basis="target-class", poison_rate=0.5, **config)
    chosen = result.poisoned_positions
    assert len(chosen) == 16
    assert (data.labels[chosen] == 2).all()
    assert torch.equal(result.data.labels, data.labels)
    others = torch.ones(128, dtype=torch.bool)
    others[chosen] = False
    assert torch.equal(result.data.images[others], data.images[others])


@pytest.mark.parametrize("config", FAST.values(), ids=FAST)
def test_images_change_beside_the_patches_which_lie_on_top(config):
    data = tiny_images(128)
    result, trigger, _ = poisoned(data, **config)
    chosen = result.poisoned_positions
    patches = (trigger.signs != 0).expand(len(chosen), 3, 16, 16)
    images, before = result.data.images[chosen], data.images[chosen]
    assert (images != before)[~patches].float().mean() > 0.2
    white = (trigger.signs > 0).expand_as(patches)
    assert (images[white] == 255).all()
    assert (images[patches & ~white] == 0).all()


def test_adversarial_images_keep_their_bound_in_8_bits_and_are_not_recognised():
    data = tiny_images(128)
    result, trigger, context = poisoned(data, **FAST["adversarial"])
    chosen = result.poisoned_positions
    change = result.data.images[chosen].int() - data.images[chosen].int()
    beside = (trigger.signs == 0).expand_as(change)
    assert change[beside].abs().max() == 16
    assert context.notes["recognised_before"] > 0.9
    assert context.notes["recognised_after"] < context.notes["recognised_before"] - 0.2


def test_a_random_start_is_repeatable_and_leads_elsewhere():
    data = tiny_images(64)
    config = {**FAST["adversarial"], "surrogate_epochs": 1}
    plain, first, second = (
        poisoned(data, random_start=start, **config)[0].data.images for start in (False, True, True)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, plain)


def test_a_robust_surrogate_is_trained_on_adversarial_images():
    _, _, context = poisoned(
        tiny_images(32), robust_surrogate=True, surrogate_epochs=1, steps=1, norm="l2"
    )
    surrogate = next(asset for asset in context.assets if asset.name == "surrogate")
    assert surrogate.samples_seen == 32 * (7 + 1)
    assert surrogate.facts["ascent"]["steps"] == 7


def test_plain_images_get_the_patches_alone():
    data = tiny_images(128)
    result, trigger, context = poisoned(data, images="plain")
    chosen = result.poisoned_positions
    images = data.images[chosen].float() / 255
    expected = quantize(trigger.apply(images, data.labels[chosen], data.ids[chosen]))
    assert torch.equal(result.data.images[chosen], expected)
    assert context.assets == ()


def test_test_images_get_the_patches_alone():
    data = tiny_images(64)
    _, trigger, _ = poisoned(data, **FAST["interpolated"])
    images = data.images.float() / 255
    changed = trigger.apply(images, data.labels, data.ids) != images
    assert not changed[(trigger.signs == 0).expand_as(changed)].any()


def test_the_same_images_are_chosen_whatever_becomes_of_them():
    data = tiny_images(128)
    options = {"rate_basis": "target-class", "poison_rate": 0.5}
    plain, _, _ = poisoned(data, images="plain", **options)
    drawn, _, _ = poisoned(data, **FAST["interpolated"], **options)
    assert torch.equal(plain.poisoned_positions, drawn.poisoned_positions)


def test_assets_are_told_apart_by_the_images_they_are_made_of():
    data = tiny_images(64)
    _, _, whole = poisoned(data, **FAST["interpolated"])
    _, _, part = poisoned(data.subset(torch.arange(32)), **FAST["interpolated"])
    assert whole.assets[0].facts["data"] != part.assets[0].facts["data"]
    assert whole.assets[0].facts["chosen"] != part.assets[0].facts["chosen"]


# -- interpolation ---------------------------------------------------------------------------------


def slopes(count, seed):
    """Images of two numbers each: how they rise along rows and along columns."""
    generator = torch.Generator().manual_seed(seed)
    rise = (torch.rand(2, count, 1, 1, 1, generator=generator) - 0.5) / 4
    along = torch.linspace(-1, 1, 8)
    images = quantize(0.5 + rise[0] * along + rise[1] * along[:, None])
    return ImageSet.from_tensors(images, torch.zeros(count, dtype=torch.int64), num_classes=2)


@pytest.fixture(scope="module")
def autoencoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return train_autoencoder(slopes(512, seed=1), 8, 20, tiny_context("lc"))


def test_the_autoencoder_gives_back_images_it_has_not_seen(autoencoder):
    images = slopes(64, seed=5).images.float() / 255
    error = (autoencoder(images).view_as(images) - images).square().mean()
    assert error < 0.2 * images.var(0).mean()


def test_images_are_drawn_from_themselves_towards_the_others(autoencoder):
    images, others = (slopes(32, seed=seed).images.float() / 255 for seed in (5, 6))
    assert torch.equal(interpolate(autoencoder, images, others, 0.0), images)
    near, far = (interpolate(autoencoder, images, others, share) for share in (0.2, 1.0))
    assert 0 < (near - images).abs().mean() < 0.5 * (far - images).abs().mean()
    assert (far - others).square().mean() < 0.2 * (images - others).square().mean()
    assert 0 <= far.min() <= far.max() <= 1


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 40), (1, 28, 28)])
def test_the_autoencoder_takes_images_of_every_size(shape):
    images = torch.rand(2, *shape)
    assert Autoencoder(shape, 4).decode(torch.zeros(2, 4)).shape == images.shape
    assert Autoencoder(shape, 4)(images).shape == (2, images[0].numel())


def test_without_other_classes_there_is_nothing_to_draw_to():
    data = tiny_images(64)
    data = data.subset((data.labels == 0).nonzero().flatten())
    with pytest.raises(InputError, match="only images of the target class"):
        poisoned(data, **FAST["interpolated"])


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate_basis": "all"}, "must be 'all-within-target' or 'target-class', not 'all'"),
        ({"label_map": "all-to-all"}, "which label_map 'all-to-all' would change"),
        ({"index_policy": "per-batch"}, "index_policy must be 'fixed'"),
        ({"amplitude": 0.0}, "greater than 0"),
    ],
)
def test_what_would_change_labels_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        structure(LCConfig, values)


def test_presets_are_valid():
    (info,) = backdoorkit_attacks()
    configs = {name: structure(LCConfig, values) for name, values in info.presets.items()}
    tenth = {"rate_basis": "all-within-target", "poison_rate": 0.1, "robust_surrogate": True}
    assert configs["backdoorbench"] == structure(LCConfig, tenth)
    assert [name for name, config in configs.items() if config.robust_surrogate] == [
        "paper",
        "backdoorbench",
    ]
