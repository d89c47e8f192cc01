"""Augmentation: exact against one image at a time, and fair in what it draws."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.data.augmentation import Augmentation, crop_and_mirror
from backdoorkit.errors import ContractError


def one_at_a_time(images, rows, columns, mirrored, padding):
    count, channels, height, width = images.shape
    result = torch.empty_like(images)
    for i in range(count):
        canvas = images.new_zeros(channels, height + 2 * padding, width + 2 * padding)
        canvas[:, padding : padding + height, padding : padding + width] = images[i]
        top, left = int(rows[i]), int(columns[i])
        window = canvas[:, top : top + height, left : left + width]
        result[i] = window.flip(-1) if mirrored[i] else window
    return result


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 7, 12)])
def test_batch_is_what_a_loop_over_images_gives(make_images, padding, flip, shape):
    images = make_images(40, shape)
    augmentation = Augmentation(crop_padding=padding, horizontal_flip=flip)
    drawn = augmentation.draw(40, torch.Generator().manual_seed(5))
    expected = one_at_a_time(images, drawn[0], drawn[1], drawn[2].bool(), padding)
    assert torch.equal(augmentation(images, torch.Generator().manual_seed(5)), expected)


def test_every_offset_and_both_sides_give_the_right_window(make_images):
    images = make_images(1, (2, 5, 6))
    for row in range(5):
        for column in range(5):
            for flag in (False, True):
                offsets = [torch.tensor([row]), torch.tensor([column]), torch.tensor([flag])]
                made = crop_and_mirror(images, *offsets, padding=2)
                assert torch.equal(made, one_at_a_time(images, *offsets, 2))


def test_float_images_are_moved_like_bytes_and_pass_gradients_on(make_images):
    images = make_images(8, (3, 6, 6))
    augmentation = Augmentation(crop_padding=2, horizontal_flip=True)
    floats = (images.float() / 255).requires_grad_()
    made = augmentation(floats, torch.Generator().manual_seed(1))
    expected = augmentation(images, torch.Generator().manual_seed(1)).float() / 255
    assert torch.equal(made.detach(), expected)
    made.sum().backward()
    assert floats.grad.unique().tolist() == [0, 1]


def test_offsets_are_uniform_and_independent():
    drawn = Augmentation(crop_padding=4, horizontal_flip=True).draw(
        81_000, torch.Generator().manual_seed(0)
    )
    for offsets in drawn[:2]:
        counts = torch.bincount(offsets, minlength=9)
        assert len(counts) == 9
        assert (counts - 9000).abs().max() < 450  # five standard deviations
    assert abs(int(drawn[2].sum()) - 40_500) < 712
    assert set(drawn[2].unique().tolist()) == {0, 1}
    assert torch.corrcoef(drawn.double()).fill_diagonal_(0).abs().max() < 0.02


def test_same_generator_state_gives_the_same_images(make_images):
    augmentation = Augmentation(crop_padding=2, horizontal_flip=True)
    first = augmentation(make_images(), torch.Generator().manual_seed(1))
    again = augmentation(make_images(), torch.Generator().manual_seed(1))
    other = augmentation(make_images(), torch.Generator().manual_seed(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_nothing_to_do_gives_the_images_and_draws_nothing(make_images):
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    images = make_images()
    assert Augmentation()(images, generator) is images
    assert torch.equal(generator.get_state(), before)


def test_negative_padding_and_missing_offsets_are_refused(make_images):
    with pytest.raises(ValueError, match="crop_padding"):
        Augmentation(crop_padding=-1)
    one = torch.tensor([0])
    with pytest.raises(ContractError, match="for each of 30 images"):
        crop_and_mirror(make_images(), one, one, one.bool(), padding=1)
