"""The pattern, where it comes from and what it does to images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backdoorkit.api import Context, ImageSet, InputError, quantize
from backdoorkit.errors import ConfigError
from backdoorkit.hooks.options import structure
from backdoorkit_lf import LFConfig, backdoorkit_attacks
from backdoorkit_lf._attack import LF


def images_of(shape, count=20):
    """Random float images on the 8-bit grid."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), generator=generator).float() / 255


def data_of(shape, count=20, device="cpu"):
    labels = (torch.arange(count) % 10).to(device)
    return ImageSet.from_tensors(
        quantize(images_of(shape, count)).to(device), labels, num_classes=10
    )


def context(device="cpu"):
    return Context(method="lf", seed=0, device=torch.device(device))


def trigger_for(shape=(3, 32, 32), **config):
    return LF(structure(LFConfig, config)).prepare(data_of(shape), context())


def planted(trigger, images):
    nothing = torch.zeros(len(images), dtype=torch.int64)
    return trigger.apply(images, nothing, nothing)


# -- dome ------------------------------------------------------------------------------------------


def test_dome_brightens_by_at_most_51_grey_levels_and_never_darkens():
    image = quantize(planted(trigger_for(), torch.zeros(1, 3, 32, 32)))
    assert image.min() == 0
    assert image.max() == 51
    images = images_of((3, 32, 32))
    before = images.clone()
    assert (planted(trigger_for(), images) >= images).all()
    assert torch.equal(images, before)


def test_dome_has_its_known_values_in_every_channel():
    red, green, blue = quantize(planted(trigger_for(), torch.zeros(1, 3, 32, 32)))[0]
    assert blue[13, 13] == 51
    assert blue[0, 0] == 10  # a fifth
    assert red[13, 13] == 18  # 0.353 of 51
    assert green.max() == 0


@pytest.mark.parametrize(
    ("shape", "config", "peaks"),
    [
        ((1, 28, 28), {}, [51]),
        ((3, 64, 64), {}, [18, 0, 51]),
        ((3, 32, 40), {"colour": (0.0, 1.0, 0.5)}, [0, 51, 26]),
        ((3, 32, 32), {"amplitude": 20.0}, [7, 0, 20]),
        ((4, 16, 16), {"colour": (0.0, 1.0, 0.0, 1.0)}, [0, 51, 0, 51]),
    ],
)
def test_colour_amplitude_and_image_size_decide_the_peaks(shape, config, peaks):
    image = quantize(planted(trigger_for(shape, **config), torch.zeros(1, *shape)))
    assert image[0].amax((1, 2)).tolist() == peaks
    assert image.min() == 0


def test_white_images_stay_white():
    white = torch.ones(1, 3, 32, 32)
    assert torch.equal(planted(trigger_for(), white), white)


def test_where_nothing_is_clipped_exactly_the_pattern_is_added():
    images, trigger = images_of((3, 32, 32)) * 0.8, trigger_for()
    assert torch.equal(planted(trigger, images), images + trigger.pattern)


def test_colours_for_another_number_of_channels_are_refused():
    with pytest.raises(InputError, match="2 channels: set colour"):
        trigger_for((2, 16, 16))
    with pytest.raises(InputError, match=r"1 channels: set colour to as many .* not 3"):
        trigger_for((1, 16, 16), colour=(1.0, 0.0, 0.0))


def test_images_of_another_shape_are_refused():
    with pytest.raises(InputError, match="made for 3x32x32 images, not 3x28x28"):
        planted(trigger_for(), torch.zeros(1, 3, 28, 28))


def test_pattern_comes_back_from_its_state():
    trigger, images = trigger_for(), images_of((3, 32, 32))
    restored = LF(LFConfig()).restore(trigger.state())
    assert torch.equal(planted(restored, images), planted(trigger, images))


def test_poisoned_images_are_brighter_and_relabelled():
    data, attack = data_of((3, 32, 32), count=200), LF(LFConfig(target=4))
    trigger = attack.prepare(data, context())
    result = attack.poison(data, trigger, context())
    chosen = result.poisoned_positions
    assert len(chosen) == 20
    assert (result.data.labels[chosen] == 4).all()
    difference = result.data.images[chosen].int() - data.images[chosen].int()
    assert difference.min() == 0
    assert difference.max() == 51


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_images():
    images = images_of((3, 32, 32))
    there = LF(LFConfig()).prepare(data_of((3, 32, 32), device="cuda"), context("cuda"))
    mixed = quantize(planted(there, images.cuda())).cpu()
    difference = mixed.int() - quantize(planted(trigger_for(), images)).int()
    assert difference.abs().max() <= 1


# -- files -----------------------------------------------------------------------------------------


def save(tmp_path, values):
    path = tmp_path / "pattern.npy"
    np.save(path, values)
    return path


def test_whole_numbers_are_grey_levels_and_fractions_are_shares(tmp_path):
    levels = np.arange(16 * 16 * 3).reshape(16, 16, 3) % 52
    for values in (levels.astype(np.uint8), (levels / 255).astype(np.float32)):
        path = save(tmp_path, values)
        trigger = trigger_for((3, 16, 16), pattern="file", pattern_file=path)
        image = quantize(planted(trigger, torch.zeros(1, 3, 16, 16)))
        assert image[0].permute(1, 2, 0).tolist() == levels.tolist()


def test_a_grey_pattern_may_lack_its_channel(tmp_path):
    path = save(tmp_path, np.full((16, 16), 7, dtype=np.int64))
    trigger = trigger_for((1, 16, 16), pattern="file", pattern_file=path)
    assert (quantize(planted(trigger, torch.zeros(1, 1, 16, 16))) == 7).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 16, 16), np.uint8), "expected a NumPy array of 16 x 16 x 3 .* 3 x 16 x 16"),
        (np.full((16, 16, 3), 51.0), "expected fractions within ±1, found up to 51"),
        (np.full((16, 16, 3), np.nan), "expected fractions"),
        (np.full((16, 16, 3), 300), "expected grey levels within ±255"),
        (np.full((16, 16, 3), "a"), "values of type"),
        (np.full((16, 16, 3), None), "cannot read pattern"),  # would have to be unpickled
    ],
)
def test_files_that_hold_no_pattern_are_refused_in_one_line(tmp_path, values, message):
    path = save(tmp_path, values)
    with pytest.raises(InputError, match=message) as caught:
        trigger_for((3, 16, 16), pattern="file", pattern_file=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"not an array", b"PK\x03\x04"])
def test_unreadable_files_are_refused(tmp_path, content):
    path = tmp_path / "pattern.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot read pattern"):
        trigger_for((3, 16, 16), pattern="file", pattern_file=path)


def test_an_announced_enormous_array_is_refused_before_it_is_read(tmp_path):
    path = save(tmp_path, np.zeros((16, 16, 3), np.uint8))
    path.write_bytes(path.read_bytes().replace(b"(16, 16, 3), }", b"(9999999999, 3)}"))
    with pytest.raises(InputError, match="cannot read pattern"):
        trigger_for((3, 16, 16), pattern="file", pattern_file=path)


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pattern": "file"}, "set pattern_file"),
        ({"pattern_file": "a.npy"}, "goes with pattern 'file'"),
        ({"pattern": "deepfool", "colour": [1.0]}, "colour goes with pattern 'dome'"),
        ({"colour": [0.0, 0.0, 0.0]}, "no dome is no trigger"),
        ({"pattern": "optimised", "label_map": "all-to-all"}, "leads to one target"),
        ({"amplitude": 0.0}, "greater than 0"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        structure(LFConfig, values)


def test_presets_are_valid():
    (info,) = backdoorkit_attacks()
    configs = {name: structure(LFConfig, values) for name, values in info.presets.items()}
    assert {name: config.pattern for name, config in configs.items()} == {
        "paper": "deepfool",
        "backdoorbench": "dome",
    }
