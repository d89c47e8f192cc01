"""The patterns, how they are mixed in, and what is poisoned with them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from backdoorkit.api import Context, ImageSet, InputError, quantize
from backdoorkit.errors import ConfigError
from backdoorkit.hooks.options import structure
from backdoorkit_blended import BlendedConfig, backdoorkit_attacks
from backdoorkit_blended._attack import Blended, FixedPattern


def images_of(shape, count=20, seed=0):
    """Random float images on the 8-bit grid."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator).float() / 255


def data_of(shape, count=20, num_classes=10):
    labels = torch.arange(count) % num_classes
    return ImageSet.from_tensors(quantize(images_of(shape, count)), labels, num_classes=num_classes)


def context(seed=0):
    return Context(method="blended", seed=seed, device=torch.device("cpu"))


def trigger_for(shape=(3, 32, 32), seed=0, **config):
    return Blended(BlendedConfig(**config)).prepare(data_of(shape), context(seed))


def planted(trigger, images, ids=None):
    ids = torch.arange(len(images)) if ids is None else ids
    return trigger.apply(images, torch.zeros_like(ids), ids)


def blend(pixel, pattern, alpha):
    """One pixel of a one-pixel image, quantised."""
    trigger = FixedPattern((1, 1, 1), alpha, torch.full((1, 1, 1, 1), pattern / 255))
    return int(quantize(planted(trigger, torch.full((1, 1, 1, 1), pixel / 255))))


PATTERNS = [
    {"pattern": "noise"},
    {"pattern": "noise", "grey_noise": True},
    {"pattern": "noise", "resample": True},
    {"pattern": "noise", "resample": True, "grey_noise": True},
    {"pattern": "procedural"},
]
SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 32, 40)]


@pytest.mark.parametrize(
    ("pixel", "pattern", "expected"), [(0, 255, 51), (255, 0, 204), (128, 255, 153)]
)
def test_a_fifth_of_the_pattern_gives_the_known_values(pixel, pattern, expected):
    assert blend(pixel, pattern, 0.2) == expected


def test_all_pairs_of_values_are_rounded_not_cut():
    pixels, pattern = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    trigger = FixedPattern((1, 256, 256), 0.2, (pattern.float() / 255)[None, None])
    mixed = quantize(planted(trigger, (pixels.float() / 255)[None, None]))[0, 0]
    assert torch.equal(mixed.long(), (800 * pixels + 200 * pattern + 500) // 1000)


@pytest.mark.parametrize("config", PATTERNS)
def test_share_zero_changes_nothing_and_share_one_leaves_the_pattern(config):
    images = images_of((3, 32, 32))
    assert torch.equal(planted(trigger_for(alpha=0.0, **config), images), images)
    trigger = trigger_for(alpha=1.0, **config)
    pattern = trigger.patterns(torch.arange(len(images))).expand_as(images)
    assert torch.equal(planted(trigger, images), pattern)


@pytest.mark.parametrize("config", PATTERNS)
@pytest.mark.parametrize("shape", SHAPES)
def test_patterns_fit_all_shapes_and_lie_on_the_8_bit_grid(config, shape):
    trigger = trigger_for(shape, **config)
    pattern = trigger.patterns(torch.arange(4))
    assert pattern.shape[1:] == shape
    assert pattern.min() >= 0
    assert pattern.max() <= 1
    assert torch.allclose(pattern, quantize(pattern).float() / 255, atol=1e-6)
    images = images_of(shape, 4)
    before = images.clone()
    mixed = planted(trigger, images)
    assert mixed.shape == images.shape
    assert mixed.dtype == torch.float32
    assert 0 <= mixed.min() <= mixed.max() <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("config", PATTERNS)
def test_mixing_is_linear_in_the_image(config):
    trigger = trigger_for(**config)
    first, second = (images_of((3, 32, 32), seed=seed) for seed in (1, 2))
    difference = planted(trigger, first) - planted(trigger, second)
    assert torch.allclose(difference, 0.8 * (first - second), atol=1e-6)


@pytest.mark.parametrize("config", PATTERNS)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_result_does_not_depend_on_the_batch(config, size):
    trigger = trigger_for(**config)
    images, ids = images_of((3, 32, 32), count=64), torch.arange(1000, 1064)
    whole = planted(trigger, images, ids)
    parts = [
        planted(trigger, *part) for part in zip(images.split(size), ids.split(size), strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(planted(trigger, images[order], ids[order]), whole[order])
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(planted(trigger, channels_last, ids), whole)


@pytest.mark.parametrize("config", PATTERNS)
def test_pattern_comes_from_the_seed_and_comes_back_from_its_state(config):
    images = images_of((3, 32, 32))
    trigger = trigger_for(**config)
    mixed = planted(trigger, images)
    assert torch.equal(planted(trigger_for(**config), images), mixed)
    assert not torch.equal(planted(trigger_for(seed=1, **config), images), mixed)
    restored = Blended(BlendedConfig()).restore(trigger.state())
    assert torch.equal(planted(restored, images), mixed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", PATTERNS)
def test_a_gpu_gives_the_same_images(config):
    images, device = images_of((3, 32, 32), count=64), torch.device("cuda")
    attack = Blended(BlendedConfig(**config))
    there = Context(method="blended", seed=0, device=device)
    mixed = planted(attack.prepare(data_of((3, 32, 32)), there), images.to(device)).cpu()
    expected = quantize(planted(trigger_for(**config), images))
    assert (quantize(mixed).int() - expected.int()).abs().max() <= 1
    restored = attack.restore(trigger_for(**config).state())
    assert torch.equal(planted(restored, images.to(device)).cpu(), mixed)


# -- patterns --------------------------------------------------------------------------------------


def test_noise_is_uniform_and_differs_between_channels_unless_grey():
    noise = trigger_for((3, 64, 64)).pattern[0]
    assert noise.mean() == pytest.approx(0.5, abs=0.02)
    assert noise.std() == pytest.approx(12**-0.5, abs=0.01)
    assert not torch.equal(noise[0], noise[1])
    grey = trigger_for((3, 64, 64), grey_noise=True).pattern[0]
    assert torch.equal(grey[0], grey[1])


def test_noise_is_the_same_for_all_images_unless_resampled():
    gray = torch.full((2, 3, 32, 32), 0.5)
    fixed = planted(trigger_for(), gray)
    assert torch.equal(fixed[0], fixed[1])
    fresh = planted(trigger_for(resample=True), gray)
    assert not torch.equal(fresh[0], fresh[1])


def test_resampled_noise_is_uniform_and_unrelated_between_images_and_pixels():
    noise = trigger_for((1, 32, 32), resample=True, alpha=1.0).patterns(torch.arange(500))
    assert noise.mean() == pytest.approx(0.5, abs=0.002)
    assert noise.std() == pytest.approx(12**-0.5, abs=0.002)
    assert torch.bincount(quantize(noise).flatten().long(), minlength=256).min() > 1700
    flat = noise.flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(500)
    assert correlation.abs().max() < 0.2  # 1024 pixels: standard deviation 1/32
    between_pixels = torch.corrcoef(flat.T[:64]) - torch.eye(64)
    assert between_pixels.abs().max() < 0.25


def test_drawing_has_plain_areas_a_dark_border_and_one_look_at_all_sizes():
    small, large = (
        trigger_for((3, side, side), pattern="procedural").pattern for side in (32, 128)
    )
    assert (small[..., 0, :] == 0).all()
    assert (small[..., :, -1] == 0).all()
    assert small[..., 2:-2, 2:-2].mean() > 0.2
    steps = (large.diff(dim=-1) == 0).float().mean()
    assert steps > 0.9
    assert (torch.nn.functional.avg_pool2d(large, 4) - small).abs().mean() < 0.03


def test_picture_is_scaled_to_the_images(tmp_path):
    path = tmp_path / "pattern.png"
    Image.new("RGB", (7, 9), (255, 0, 51)).save(path)
    colour = trigger_for((3, 32, 40), pattern="image", pattern_image=path)
    assert quantize(colour.pattern[0]).amax((1, 2)).tolist() == [255, 0, 51]
    assert colour.pattern.shape == (1, 3, 32, 40)
    grey = trigger_for((1, 8, 8), pattern="image", pattern_image=path)
    assert quantize(grey.pattern).unique().tolist() == [82]


@pytest.mark.parametrize("content", [None, b"not a picture"])
def test_an_unreadable_picture_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "pattern.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot read pattern image") as caught:
        trigger_for(pattern="image", pattern_image=path)
    assert "\n" not in str(caught.value)


def test_an_enormous_picture_is_refused_before_it_is_decoded(tmp_path):
    Image.new("L", (5000, 1)).save(tmp_path / "huge.png")
    with pytest.raises(InputError, match="scale it down"):
        trigger_for(pattern="image", pattern_image=tmp_path / "huge.png")


def test_images_of_another_shape_are_refused():
    with pytest.raises(InputError, match="made for 3x32x32 images, not 3x28x28"):
        planted(trigger_for(), torch.zeros(1, 3, 28, 28))


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pattern": "image"}, "set pattern_image"),
        ({"pattern_image": "a.png"}, "goes with pattern 'image'"),
        ({"pattern": "procedural", "resample": True}, "go with pattern 'noise'"),
        ({"alpha": 1.5}, "alpha: must be at most 1"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        structure(BlendedConfig, values)


def test_presets_are_valid():
    (info,) = backdoorkit_attacks()
    configs = {name: structure(BlendedConfig, values) for name, values in info.presets.items()}
    assert all(config.alpha == 0.2 for config in configs.values())
    assert [name for name, config in configs.items() if config.resample] == ["abl-released"]


# -- poisoning -------------------------------------------------------------------------------------


def poisoned(data, seed=0, **config):
    attack = Blended(BlendedConfig(**config))
    trigger = attack.prepare(data, context(seed))
    return attack.poison(data, trigger, context(seed)), trigger


def test_poisoning_changes_the_stated_share_and_nothing_else():
    data = data_of((3, 32, 32), count=200)
    result, trigger = poisoned(data, poison_rate=0.1, target=4)
    chosen = result.poisoned_positions
    assert len(chosen) == 20
    assert (result.data.labels[chosen] == 4).all()
    expected = quantize(planted(trigger, data.images[chosen].float() / 255))
    assert torch.equal(result.data.images[chosen], expected)
    others = torch.ones(200, dtype=torch.bool)
    others[chosen] = False
    assert torch.equal(result.data.images[others], data.images[others])
    assert torch.equal(result.data.labels[others], data.labels[others])


def test_labels_move_into_the_target_class():
    data = data_of((1, 8, 8), count=200)
    result, _ = poisoned(data, poison_rate=0.5)
    before = torch.bincount(data.labels, minlength=10)
    after = torch.bincount(result.data.labels, minlength=10)
    assert after[0] - before[0] == (data.labels[result.poisoned_positions] != 0).sum()


def test_pattern_may_be_stronger_at_test_time():
    data = data_of((3, 32, 32), count=50)
    result, trigger = poisoned(data, poison_rate=1.0, test_alpha=0.6)
    images = data.images.float() / 255
    weak, strong = (torch.lerp(images, trigger.pattern, alpha) for alpha in (0.2, 0.6))
    assert torch.equal(result.data.images, quantize(weak))
    assert torch.equal(planted(trigger, images), strong)


def test_resampled_noise_in_training_is_not_that_of_the_test():
    data = data_of((3, 32, 32), count=50)
    result, trigger = poisoned(data, poison_rate=1.0, resample=True, alpha=1.0)
    again, _ = poisoned(data, poison_rate=1.0, resample=True, alpha=1.0)
    at_test = quantize(planted(trigger, data.images.float() / 255, data.ids))
    assert torch.equal(result.data.images, again.data.images)
    assert (result.data.images == at_test).float().mean() < 0.01


def test_which_images_are_poisoned_does_not_depend_on_the_pattern():
    data = data_of((3, 32, 32), count=200)
    first, second = (poisoned(data, pattern=name)[0] for name in ("noise", "procedural"))
    assert torch.equal(first.poisoned_positions, second.poisoned_positions)
