"""The patch: its place, its planting, and the pixels that the optimisation has to find."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from backdoorkit.api import ImageSet, InputError, quantize, train_surrogate
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images
from backdoorkit_trojannn import TrojanNNConfig, backdoorkit_attacks
from backdoorkit_trojannn._attack import TrojanNN
from backdoorkit_trojannn._neurons import watched
from backdoorkit_trojannn._patch import draw_mask, plant
from backdoorkit_trojannn._search import find_patch

FAST = {
    "surrogate_epochs": 10,
    "surrogate_batch_size": 32,
    "steps": 60,
    "backgrounds": 8,
    "size": 12,
}


def images_of(shape, count=8, seed=0):
    """Random float images on the 8-bit grid."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator).float() / 255


def planted(trigger, images):
    ids = torch.arange(len(images))
    return trigger.apply(images, torch.zeros_like(ids), ids)


def mask_of(height, width, **config):
    return draw_mask(TrojanNNConfig(**config), height, width)[0, 0]


@pytest.fixture(scope="module")
def data():
    return tiny_images(128)


@pytest.fixture(scope="module")
def surrogate(data):
    return train_surrogate(data, tiny_context("trojannn"), TrojanNNConfig(**FAST))


@pytest.fixture(scope="module")
def trigger(surrogate, data):
    return find_patch(surrogate, data, TrojanNNConfig(**FAST, neurons=1), tiny_context("trojannn"))


# -- where the patch sits --------------------------------------------------------------------------


def test_the_square_is_the_papers_scaled_to_the_images():
    paper = mask_of(224, 224).nonzero()
    assert paper.amin(0).tolist() == [145, 145]
    assert paper.amax(0).tolist() == [203, 203]
    assert len(paper) == 59 * 59
    small = mask_of(32, 32).nonzero()
    assert (small.amin(0).tolist(), small.amax(0).tolist()) == ([20, 20], [29, 29])
    assert len(small) == 100


def test_size_and_offset_place_the_patch_of_abl():
    pixels = mask_of(32, 32, size=3, offset=4).nonzero()
    assert (pixels.amin(0).tolist(), pixels.amax(0).tolist()) == ([25, 25], [27, 27])


def test_a_disc_is_round_and_inside_the_square():
    disc, square = (mask_of(64, 48, shape=shape) for shape in ("disc", "square"))
    assert not (disc & ~square).any()
    assert disc.sum() / square.sum() == pytest.approx(torch.pi / 4, abs=0.05)
    rows = disc.any(1).nonzero().flatten()
    assert torch.equal(disc[rows], disc[rows].flip(0))


def test_a_patch_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="set a smaller size or offset"):
        mask_of(16, 16, size=15, offset=2)


# -- how it is planted -----------------------------------------------------------------------------


@pytest.mark.parametrize(("planting", "expected"), [("replace", 100), ("add", 255), ("wrap", 44)])
def test_200_and_100_give_what_the_planting_says(planting, expected):
    pixel, pattern = (torch.full((1, 1, 1, 2), value / 255) for value in (200, 100))
    mask = torch.tensor([True, False]).view(1, 1, 1, 2)
    made = plant(pixel, pattern, mask, planting)
    assert quantize(made).flatten().tolist() == [expected, 200]


def test_all_sums_wrap_as_bytes_do():
    pixels, patterns = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    everywhere = torch.ones(1, 1, 256, 256, dtype=torch.bool)
    made = plant(pixels[None, None] / 255, patterns[None, None] / 255, everywhere, "wrap")
    expected = (pixels.to(torch.uint8) + patterns.to(torch.uint8))[None, None]
    assert torch.equal(quantize(made), expected)


@pytest.mark.parametrize("planting", ["replace", "add", "wrap"])
def test_only_the_masks_pixels_differ(planting, data):
    config = TrojanNNConfig(**FAST | {"steps": 2, "surrogate_epochs": 0, "planting": planting})
    trigger = TrojanNN(config).prepare(data, tiny_context("trojannn"))
    images = images_of((3, 16, 16))
    changed = (planted(trigger, images) != images).any(dim=(0, 1))
    assert not (changed & ~trigger.mask[0, 0]).any()
    assert changed.sum() == trigger.mask.sum()


# -- what the optimisation finds -------------------------------------------------------------------


class Readout(nn.Module):
    """One neuron that is a weighted sum of the pixels, and a head that reads it."""

    def __init__(self, weight):
        super().__init__()
        self.neuron = nn.Linear(weight.numel(), 1)
        self.head = nn.Linear(1, 4)
        with torch.no_grad():
            self.neuron.weight.copy_(weight.flatten())
            self.neuron.bias.zero_()

    def forward(self, images):
        return self.head(self.neuron(images.flatten(1)))


@pytest.mark.parametrize("backgrounds", [0, 4])
def test_of_a_linear_neuron_the_patch_is_white_where_the_weight_is_positive(data, backgrounds):
    weight = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(2))
    weight = weight + 0.05 * weight.sign()
    model = Readout(weight).eval().requires_grad_(False)
    config = TrojanNNConfig(neurons=1, activation_target=1e4, steps=150, backgrounds=backgrounds)
    trigger = find_patch(model, data, config, tiny_context("trojannn"))
    inside = trigger.mask.expand(1, 3, 16, 16)
    white = (weight[None] > 0).float()
    # Adam comes within one grey level of the bounds, which tanh never reaches.
    assert torch.allclose(trigger.pattern[inside], white[inside], atol=1.1 / 255)
    assert (trigger.pattern[~inside] == 0).all()


def test_a_goal_within_reach_is_met():
    weight = torch.ones(1, 8, 8)
    model = Readout(weight).eval().requires_grad_(False)
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    data = ImageSet.from_tensors(images, torch.arange(4))
    config = TrojanNNConfig(neurons=1, activation_target=3.0, steps=200, backgrounds=0)
    trigger = find_patch(model, data, config, tiny_context("trojannn"))
    assert trigger.facts["reached"].item() == pytest.approx(3.0, abs=0.02)


def activations(model, images, neurons):
    """Mean activation of each neuron on each image, from the model's own forward."""
    with watched(model, "network.linear", neurons) as watch:
        model(images)
    return watch.activations.mean(dim=2)


def test_the_patch_excites_its_neuron_beyond_what_clean_images_do(surrogate, trigger, data):
    facts = trigger.facts
    fresh = tiny_images(64, seed=7).images.float() / 255
    clean = activations(surrogate, fresh, facts["neurons"])
    stamped = activations(surrogate, planted(trigger, fresh), facts["neurons"])
    assert (stamped.mean(0) > clean.quantile(0.99, dim=0)).all()
    noise = attrs.evolve(trigger, pattern=images_of((3, 16, 16), count=1))
    random = activations(surrogate, planted(noise, fresh), facts["neurons"])
    assert (stamped.mean(0) > 1.5 * random.mean(0)).all()
    # What the record says is what the training images give.
    images = data.images.float() / 255
    natural = activations(surrogate, images, facts["neurons"])
    reached = activations(surrogate, planted(trigger, images), facts["neurons"])
    assert torch.allclose(facts["natural"], natural.mean(0), atol=1e-4)
    assert torch.allclose(facts["reached"], reached.mean(0), atol=1e-4)


def test_the_default_goal_is_out_of_reach_and_at_least_ten(surrogate, trigger, data):
    natural = activations(surrogate, data.images.float() / 255, trigger.facts["neurons"])
    high = natural.sort(dim=0).values[-1]  # of 128 images, the one in a thousand
    assert torch.allclose(trigger.facts["goals"], (5 * high).clamp_min(10))


def test_the_trigger_is_the_same_on_the_8_bit_grid(trigger):
    assert torch.allclose(trigger.pattern, quantize(trigger.pattern) / 255, atol=1e-6)
    images = images_of((3, 16, 16))
    assert torch.equal(planted(trigger, planted(trigger, images)), planted(trigger, images))


def test_poisoned_images_carry_the_patch_and_the_target(trigger, data):
    attack = TrojanNN(TrojanNNConfig(**FAST, target=2, poison_rate=0.25))
    poisoned = attack.poison(data, trigger, tiny_context("trojannn"))
    chosen = poisoned.poisoned_positions
    assert len(chosen) == 32
    assert (poisoned.data.labels[chosen] == 2).all()
    expected = planted(trigger, data.images[chosen].float() / 255)
    assert torch.equal(poisoned.data.images[chosen], quantize(expected))


def test_images_of_another_shape_are_refused(trigger):
    with pytest.raises(InputError, match="made for 3x16x16 images, not 3x8x8"):
        planted(trigger, torch.zeros(1, 3, 8, 8))


def test_presets_are_valid_and_place_their_patches():
    (info,) = backdoorkit_attacks()
    configs = {name: structure(TrojanNNConfig, values) for name, values in info.presets.items()}
    sizes = {name: int(draw_mask(config, 32, 32).sum()) for name, config in configs.items()}
    assert sizes["abl"] == 9
    assert sizes["trojanzoo"] == 100
    assert 70 <= sizes["backdoorbench"] <= 90
