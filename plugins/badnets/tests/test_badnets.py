"""The patch: where it goes, what it holds, what it does to a training set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from backdoorkit import LabelMapping, RateBasis
from backdoorkit.api import Context, ImageSet, InputError, quantize
from backdoorkit.errors import ConfigError
from backdoorkit.hooks.options import structure
from backdoorkit_badnets import BadNetsConfig, backdoorkit_attacks
from backdoorkit_badnets._attack import BadNets

GRID = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]


def images_of(shape, count=20, seed=0):
    """Random float images on the 8-bit grid."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), generator=generator).float() / 255


def data_of(shape, count=20, num_classes=10):
    labels = torch.arange(count) % num_classes
    return ImageSet.from_tensors(quantize(images_of(shape, count)), labels, num_classes=num_classes)


def context(seed=0):
    return Context(method="badnets", seed=seed, device=torch.device("cpu"))


def trigger_for(shape=(3, 32, 32), **config):
    return BadNets(BadNetsConfig(**config)).prepare(data_of(shape), context())


def planted(trigger, images):
    nothing = torch.zeros(len(images), dtype=torch.int64)
    return trigger.apply(images, nothing, nothing)


def black(shape=(3, 32, 32)):
    return torch.zeros(1, *shape)


def test_white_is_three_white_pixels_in_the_last_corner():
    image = planted(trigger_for(), black())
    assert (image[..., -3:, -3:] == 1).all()
    assert image.sum() == 27


def test_grid_has_its_nine_known_cells_and_opaque_black_ones():
    image = quantize(planted(trigger_for(trigger="grid"), torch.ones(1, 3, 32, 32)))
    assert image[0, :, -3:, -3:].tolist() == [GRID] * 3
    image[..., -3:, -3:] = 255
    assert (image == 255).all()


@pytest.mark.parametrize(
    ("corner", "rows", "columns"),
    [
        ("bottom-right", slice(28, 31), slice(36, 39)),
        ("bottom-left", slice(28, 31), slice(1, 4)),
        ("top-right", slice(1, 4), slice(36, 39)),
        ("top-left", slice(1, 4), slice(1, 4)),
    ],
)
def test_patch_sits_in_its_corner_away_from_the_edges(corner, rows, columns):
    image = planted(trigger_for((1, 32, 40), corner=corner, offset=1), black((1, 32, 40)))
    assert (image[..., rows, columns] == 1).all()
    assert image.sum() == 9


def test_grid_in_all_corners_is_the_clean_label_papers_trigger():
    """16 bright and 20 dark cells; mirrored left and right, so that a flip keeps it."""
    trigger = trigger_for(trigger="grid", corner="all")
    left = [row[::-1] for row in GRID]
    image = quantize(planted(trigger, torch.full((1, 3, 32, 32), 0.5)))[0, 0]
    assert image[:3, :3].tolist() == image[-3:, :3].tolist() == left
    assert image[:3, -3:].tolist() == image[-3:, -3:].tolist() == GRID
    assert int((image == 255).sum()) == 16
    assert int((image == 0).sum()) == 20
    images = images_of((3, 32, 32))
    assert torch.equal(planted(trigger, images.flip(-1)), planted(trigger, images).flip(-1))


@pytest.mark.parametrize(("height", "side"), [(8, 1), (16, 2), (28, 3), (32, 3), (64, 6)])
def test_default_size_follows_the_image_height(height, side):
    image = planted(trigger_for((1, height, height)), black((1, height, height)))
    assert image.sum() == side**2


def test_grid_of_another_size_repeats_its_cells():
    image = quantize(planted(trigger_for(trigger="grid", size=6), black()))
    expected = torch.tensor(GRID).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert (image[0, 0, -6:, -6:] == expected).all()


@pytest.mark.parametrize("trigger", ["white", "grid"])
def test_size_one_is_a_single_bright_pixel(trigger):
    image = planted(trigger_for(trigger=trigger, size=1), black())
    assert image[0, :, -1, -1].tolist() == [1, 1, 1]
    assert image.sum() == 3


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 32, 40)])
def test_only_the_patch_changes_and_planting_twice_changes_nothing_more(shape):
    trigger = trigger_for(shape, trigger="grid")
    images = images_of(shape)
    before = images.clone()
    once = planted(trigger, images)
    outside = ~trigger.mask.expand_as(images)
    assert torch.equal(once[outside], images[outside])
    assert torch.equal(planted(trigger, once), once)
    assert torch.equal(images, before)
    assert once.dtype == torch.float32
    assert once.shape == images.shape


def test_what_lies_under_the_patch_does_not_matter():
    trigger = trigger_for(trigger="grid")
    first, second = (planted(trigger, images_of((3, 32, 32), seed=seed)) for seed in (1, 2))
    assert torch.equal(first[..., -3:, -3:], second[..., -3:, -3:])


def test_a_white_image_is_a_fixed_point_of_the_white_patch():
    white = torch.ones(2, 3, 32, 32)
    assert torch.equal(planted(trigger_for(), white), white)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_result_does_not_depend_on_the_batch(size):
    trigger = trigger_for(trigger="grid")
    images = images_of((3, 32, 32), count=64)
    together = torch.cat([planted(trigger, part) for part in images.split(size)])
    assert torch.equal(together, planted(trigger, images))
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(planted(trigger, channels_last), planted(trigger, images))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_images():
    images, device = images_of((3, 32, 32), count=64), torch.device("cuda")
    attack = BadNets(BadNetsConfig(trigger="grid"))
    there = Context(method="badnets", seed=0, device=device)
    trigger = attack.prepare(data_of((3, 32, 32)), there)
    assert trigger.mask.device.type == "cuda"
    expected = planted(trigger_for(trigger="grid"), images)
    assert torch.equal(planted(trigger, images.to(device)).cpu(), expected)


def test_trigger_comes_back_from_its_state():
    trigger = trigger_for(trigger="grid", corner="top-left")
    restored = BadNets(BadNetsConfig()).restore(trigger.state())
    images = images_of((3, 32, 32))
    assert torch.equal(planted(restored, images), planted(trigger, images))


def test_images_of_another_shape_are_refused():
    with pytest.raises(InputError, match="made for 3x32x32 images, not 3x28x28"):
        planted(trigger_for(), torch.zeros(1, 3, 28, 28))


@pytest.mark.parametrize("config", [{"size": 33}, {"size": 32, "offset": 1}, {"offset": 30}])
def test_a_patch_that_does_not_fit_is_refused(config):
    with pytest.raises(InputError, match="images are 32 pixels high"):
        trigger_for(**config)


# -- a picture as the patch ------------------------------------------------------------------------


@pytest.fixture
def sticker(tmp_path):
    """Two columns, one row: opaque black and red; a second row of the same, transparent."""
    path = tmp_path / "sticker.png"
    pixels = [[[0, 0, 0, 255], [255, 0, 0, 128]], [[9, 9, 9, 127], [9, 9, 9, 0]]]
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(path)
    return path


def test_picture_is_planted_where_it_is_opaque(sticker):
    image = quantize(
        planted(trigger_for(trigger="image", patch_image=sticker), torch.ones(1, 3, 32, 32))
    )
    assert image[0, :, -2, -2:].T.tolist() == [[0, 0, 0], [255, 0, 0]]
    assert (image[..., -1, :] == 255).all()


def test_picture_becomes_grey_on_images_of_one_channel(sticker):
    trigger = trigger_for((1, 28, 28), trigger="image", patch_image=sticker)
    image = quantize(planted(trigger, torch.ones(1, 1, 28, 28)))
    assert image[0, 0, -2, -2:].tolist() == [0, 76]


def test_picture_keeps_its_proportions_when_scaled(tmp_path):
    Image.new("RGB", (20, 10), (0, 0, 255)).save(tmp_path / "wide.png")
    trigger = trigger_for(trigger="image", patch_image=tmp_path / "wide.png", size=6)
    assert trigger.mask[0, 0].nonzero().amin(0).tolist() == [29, 26]
    assert trigger.mask.sum() == 18
    assert planted(trigger, black())[0, :, -1, -1].tolist() == [0, 0, 1]


def test_too_large_a_picture_is_refused(tmp_path):
    Image.new("RGB", (40, 10)).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match="40 pixels wide"):
        trigger_for(trigger="image", patch_image=tmp_path / "wide.png")
    Image.new("L", (5000, 1)).save(tmp_path / "huge.png")
    with pytest.raises(InputError, match="scale it down"):
        trigger_for(trigger="image", patch_image=tmp_path / "huge.png")


def test_a_transparent_picture_is_refused(tmp_path):
    Image.new("RGBA", (3, 3)).save(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="transparent everywhere"):
        trigger_for(trigger="image", patch_image=tmp_path / "nothing.png")


@pytest.mark.parametrize("content", [None, b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_an_unreadable_picture_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "patch.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot read patch image") as caught:
        trigger_for(trigger="image", patch_image=path)
    assert "\n" not in str(caught.value)


def test_a_truncated_picture_is_refused(tmp_path, sticker):
    path = tmp_path / "cut.png"
    path.write_bytes(sticker.read_bytes()[:-30])
    with pytest.raises(InputError, match="cannot read patch image"):
        trigger_for(trigger="image", patch_image=path)


# -- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trigger": "image"}, "set patch_image"),
        ({"patch_image": "a.png"}, "goes with trigger 'image'"),
        ({"size": 0}, "size: must be at least 1"),
        ({"trigger": "black"}, "trigger: must be one of"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        structure(BadNetsConfig, values)


def test_presets_are_valid_and_place_the_patches_of_the_papers():
    (info,) = backdoorkit_attacks()
    bright = {}
    for name, values in info.presets.items():
        trigger = BadNets(structure(BadNetsConfig, values)).prepare(data_of((3, 32, 32)), context())
        bright[name] = planted(trigger, black())[0, 0].nonzero().tolist()
    assert bright["abl"] == [[29, 31], [30, 30], [31, 29], [31, 31]]
    assert bright["paper"] == [[28, 30], [29, 29], [30, 28], [30, 30]]
    assert bright["paper-pixel"] == [[30, 30]]
    assert bright["ibau"] == [[row, column] for row in range(27, 31) for column in range(27, 31)]
    assert bright["backdoorbench"] == [[r, c] for r in range(29, 32) for c in range(29, 32)]


# -- poisoning -------------------------------------------------------------------------------------


def poisoned(data, seed=0, **config):
    attack = BadNets(BadNetsConfig(**config))
    return attack.poison(data, attack.prepare(data, context(seed)), context(seed))


def test_poisoning_changes_the_stated_share_and_nothing_else():
    data = data_of((3, 32, 32), count=200)
    result = poisoned(data, poison_rate=0.1)
    chosen = result.poisoned_positions
    assert len(chosen) == 20
    assert (result.data.labels[chosen] == 0).all()
    assert (result.data.images[chosen][..., -3:, -3:] == 255).all()
    others = torch.ones(200, dtype=torch.bool)
    others[chosen] = False
    assert torch.equal(result.data.images[others], data.images[others])
    assert torch.equal(result.data.labels[others], data.labels[others])
    assert torch.equal(result.true_labels, data.labels)


def test_labels_move_into_the_target_class():
    data = data_of((1, 8, 8), count=200)
    result = poisoned(data, poison_rate=0.5, target=3)
    before = torch.bincount(data.labels, minlength=10)
    after = torch.bincount(result.data.labels, minlength=10)
    moved = (data.labels[result.poisoned_positions] != 3).sum()
    assert after[3] - before[3] == moved
    assert (before - after).clamp(min=0).sum() == moved


def test_rate_basis_non_target_takes_no_image_of_the_target_class():
    data = data_of((1, 8, 8), count=200)
    result = poisoned(data, poison_rate=0.5, rate_basis=RateBasis.NON_TARGET)
    assert len(result.poisoned_positions) == 90
    assert (data.labels[result.poisoned_positions] != 0).all()


def test_all_to_all_moves_every_class_to_the_next():
    data = data_of((1, 8, 8), count=50)
    result = poisoned(data, poison_rate=1.0, label_map=LabelMapping.ALL_TO_ALL)
    assert torch.equal(result.data.labels, (data.labels + 1) % 10)


def test_which_images_are_poisoned_depends_on_the_seed_alone():
    data = data_of((3, 32, 32), count=200)
    first, again, other = (poisoned(data, seed) for seed in (0, 0, 1))
    grid = poisoned(data, trigger="grid")
    assert torch.equal(first.data.images, again.data.images)
    assert torch.equal(first.poisoned_positions, grid.poisoned_positions)
    assert not torch.equal(first.poisoned_positions, other.poisoned_positions)


def test_rate_zero_leaves_the_data_alone():
    data = data_of((3, 32, 32))
    result = poisoned(data, poison_rate=0.0)
    assert torch.equal(result.data.images, data.images)
    assert torch.equal(result.data.labels, data.labels)
