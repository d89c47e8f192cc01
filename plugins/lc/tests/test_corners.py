"""The patches, and what they do to images."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.api import InputError, quantize
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images
from backdoorkit_lc import LCConfig
from backdoorkit_lc._attack import LC
from backdoorkit_lc._corners import corner_signs

LEFT = [[1, -1, -1], [-1, 1, -1], [1, -1, 1]]
RIGHT = [[-1, -1, 1], [-1, 1, -1], [1, -1, 1]]


def images_of(shape=(3, 32, 32), count=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), generator=generator).float() / 255


def trigger_for(shape=(3, 32, 32), **config):
    data = tiny_images(16, image_shape=shape)
    return LC(structure(LCConfig, config)).prepare(data, tiny_context("lc"))


def planted(trigger, images):
    nothing = torch.zeros(len(images), dtype=torch.int64)
    return trigger.apply(images, nothing, nothing)


def test_corners_hold_the_known_matrix():
    signs = corner_signs(32, 32, corners="four", size=None)[0, 0]
    assert signs[:3, :3].tolist() == LEFT
    assert signs[:3, -3:].tolist() == RIGHT
    assert signs[-3:, :3].tolist() == LEFT
    assert signs[-3:, -3:].tolist() == RIGHT
    assert (signs == 1).sum() == 16
    assert (signs == -1).sum() == 20


def test_signs_are_mirrored_left_and_right_and_not_up_and_down():
    signs = corner_signs(32, 40, corners="four", size=None)
    assert torch.equal(signs, signs.flip(-1))
    assert not torch.equal(signs, signs.flip(-2))


def test_one_corner_is_the_checkerboard_at_the_bottom_right():
    image = quantize(planted(trigger_for(corners="one"), torch.full((1, 1, 32, 32), 0.5)))
    assert image[0, 0, -3:, -3:].tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert (image != 128).sum() == 9


def test_only_the_corners_change_and_nothing_shows_through():
    images = images_of()
    before = images.clone()
    triggered = planted(trigger_for(), images)
    signs = corner_signs(32, 32, corners="four", size=None)
    changed = (signs != 0).expand_as(images)
    assert changed[0, 0].sum() == 36
    assert torch.equal(triggered[~changed], images[~changed])
    assert torch.equal(triggered[changed], ((signs + 1) / 2).expand_as(images)[changed])
    assert torch.equal(images, before)


def test_a_small_amplitude_is_added_and_clipped():
    image = quantize(planted(trigger_for(amplitude=0.2), torch.full((1, 1, 32, 32), 220 / 255)))
    assert image[0, 0, :3, :3].tolist() == [[255, 169, 169], [169, 255, 169], [255, 169, 255]]


def test_triggering_and_mirroring_commute():
    images, trigger = images_of(), trigger_for(amplitude=0.3)
    assert torch.equal(planted(trigger, images.flip(-1)), planted(trigger, images).flip(-1))


@pytest.mark.parametrize(("height", "side"), [(8, 1), (16, 2), (28, 3), (64, 6)])
def test_default_size_follows_the_image_height(height, side):
    signs = corner_signs(height, height, corners="one", size=None)
    assert (signs != 0).sum() == side**2


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="set a size of at most 8"):
        trigger_for((3, 16, 32), size=9)


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match="made for 32x32 images, not 28x28"):
        planted(trigger_for(), torch.zeros(1, 3, 28, 28))


def test_trigger_comes_back_from_its_state():
    trigger, images = trigger_for(amplitude=0.3), images_of()
    restored = LC(LCConfig()).restore(trigger.state())
    assert torch.equal(planted(restored, images), planted(trigger, images))
