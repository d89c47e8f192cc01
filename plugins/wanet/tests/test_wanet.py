"""The warp, its noisy covers, and what a controlled training does with them."""

from __future__ import annotations

import pytest
import torch

from backdoorkit import IndexPolicy, TrainOptions
from backdoorkit.api import Batch, Context, ImageSet, InputError, PerBatchPoisoning, SampleKind
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images, tiny_network
from backdoorkit_wanet import WaNetConfig, backdoorkit_attacks
from backdoorkit_wanet._attack import WaNet, attack_grid, control_grid, identity_grid


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images_of(shape=(3, 32, 32), count=6, seed=0):
    return torch.rand(count, *shape, generator=seeded(seed))


def data_of(shape=(3, 32, 32), count=40):
    pixels = (images_of(shape, count) * 255).round().to(torch.uint8)
    return ImageSet.from_tensors(pixels, torch.arange(count) % 10, num_classes=10)


def context(seed=0):
    return Context(method="wanet", seed=seed, device=torch.device("cpu"))


def trigger_for(shape=(3, 32, 32), seed=0, **config):
    return WaNet(WaNetConfig(**config)).prepare(data_of(shape), context(seed))


def warped(trigger, images, ids=None):
    ids = torch.arange(len(images)) if ids is None else ids
    return trigger.apply(images, torch.zeros_like(ids), ids)


# -- the grid --------------------------------------------------------------------------------------


def test_identity_grid_names_column_and_row_in_this_order():
    grid = identity_grid(2, 3)
    assert grid[0, 0].tolist() == [[-1, -1], [0, -1], [1, -1]]
    assert grid[0, 1].tolist() == [[-1, 1], [0, 1], [1, 1]]


def test_strength_zero_is_the_identity():
    images = images_of()
    assert torch.allclose(warped(trigger_for(strength=0.0), images), images, atol=1e-5)


def test_mean_size_of_the_control_points_is_one():
    assert float(control_grid(4, seeded()).abs().mean()) == pytest.approx(1, abs=1e-6)


def test_first_channel_moves_columns_and_the_second_rows():
    control = torch.zeros(1, 2, 4, 4)
    control[:, 0] = 1.0
    moved = attack_grid(control, 16, 16, 1.0, 1.0) - identity_grid(16, 16)
    inner = moved[0, :, 2:-2]
    assert torch.allclose(inner[..., 0], torch.full_like(inner[..., 0], 1 / 16), atol=1e-6)
    assert float(inner[..., 1].abs().max()) == 0


def test_displacements_are_those_of_the_published_grids():
    """On 200 grids at 32 pixels: 0.18 pixels per axis, 0.28 as a vector, 3.2 % at the border."""
    sizes, lengths, clipped = [], [], []
    for seed in range(60):
        control = control_grid(4, seeded(seed))
        grid = attack_grid(control, 32, 32, 0.5, 1.0)
        pixels = (grid - identity_grid(32, 32)) * 31 / 2
        sizes.append(pixels.abs().mean())
        lengths.append(pixels.norm(dim=-1).mean())
        clipped.append((grid.abs() == 1).float().mean())
    assert float(torch.stack(sizes).mean()) == pytest.approx(0.18, rel=0.1)
    assert float(torch.stack(lengths).mean()) == pytest.approx(0.28, rel=0.1)
    # Half of the border's own coordinates are moved inwards.
    assert float(torch.stack(clipped).mean()) == pytest.approx(0.032, rel=0.2)


def test_grid_stays_inside_the_image():
    grid = trigger_for(strength=5.0).grid
    assert float(grid.abs().max()) <= 1


def test_an_oblong_image_is_warped_by_as_many_pixels_in_both_directions():
    control = torch.ones(1, 2, 4, 4)
    moved = attack_grid(control, 16, 32, 1.0, 1.0) - identity_grid(16, 32)
    assert float(moved[0, 4, 4, 0]) == pytest.approx(1 / 32, abs=1e-6)
    assert float(moved[0, 4, 4, 1]) == pytest.approx(1 / 16, abs=1e-6)


# -- the warp --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (3, 32, 40)])
def test_flat_images_stay_flat(shape):
    flat = torch.full((2, *shape), 0.3)
    assert torch.allclose(warped(trigger_for(shape, strength=2.0), flat), flat, atol=1e-6)


def test_warping_is_linear_in_the_image():
    trigger, images = trigger_for(), images_of()
    changed = warped(trigger, 0.5 * images + 0.25)
    assert torch.allclose(changed, 0.5 * warped(trigger, images) + 0.25, atol=1e-6)


def test_it_changes_a_smooth_picture_a_little_everywhere():
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    change = (warped(trigger_for(), ramp) - ramp).abs()
    assert 0 < float(change.mean()) < 0.01
    assert float(change.max()) < 0.05


def test_the_seed_decides_the_warp():
    first, again, other = (trigger_for(seed=seed).grid for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_trigger_comes_back_from_its_state():
    trigger, images = trigger_for(), images_of()
    restored = WaNet(WaNetConfig()).restore(trigger.state())
    assert torch.equal(warped(restored, images), warped(trigger, images))
    covers = [WaNet(WaNetConfig()).cover(t) for t in (trigger, restored)]
    assert torch.equal(warped(covers[0], images), warped(covers[1], images))


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match="made for 32x32 images, not 28x28"):
        warped(trigger_for(), torch.zeros(1, 3, 28, 28))


# -- covers ----------------------------------------------------------------------------------------


def covers_of(trigger, images, epoch=None, ids=None):
    return warped(WaNet(WaNetConfig()).cover(trigger, epoch), images, ids)


def test_each_cover_has_noise_of_its_own_that_follows_from_its_id():
    trigger, images = trigger_for(), images_of(count=1).expand(4, -1, -1, -1)
    ids = torch.tensor([5, 9, 5, 2])
    made = covers_of(trigger, images, ids=ids)
    assert torch.equal(made[0], made[2])
    assert not torch.equal(made[0], made[1])
    alone = covers_of(trigger, images[:1], ids=torch.tensor([2]))
    assert torch.equal(made[3:], alone)


def test_noise_is_drawn_anew_in_every_epoch():
    trigger, images = trigger_for(), images_of()
    epochs = [covers_of(trigger, images, epoch) for epoch in (0, 1, 1, None)]
    assert torch.equal(epochs[1], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[3])


def test_noise_is_uniform_around_the_warp_and_at_most_half_a_pixel():
    """With a ramp as the image, pixels tell where they come from."""
    trigger = trigger_for(strength=0.0)
    ramp = torch.linspace(0, 1, 32).expand(64, 1, 32, 32)
    moved = ((covers_of(trigger, ramp) - ramp) * 31)[..., 2:-2]
    assert float(moved.abs().max()) <= 31 / 64 + 1e-4
    assert float(moved.mean()) == pytest.approx(0, abs=0.01)
    assert float(moved.std()) == pytest.approx(31 / 64 / 3**0.5, rel=0.03)


def test_a_cover_is_altered_more_than_a_poisoned_image():
    trigger = trigger_for()
    images = torch.nn.functional.avg_pool2d(images_of((3, 36, 36), 20), 5, 1)
    plain, noisy = (
        (made - images).square().mean()
        for made in (warped(trigger, images), covers_of(trigger, images))
    )
    assert float(noisy) > float(plain)


# -- poisoning -------------------------------------------------------------------------------------


def test_a_fixed_set_has_its_share_of_poison_and_twice_as_many_covers():
    data = data_of(count=200)
    attack = WaNet(WaNetConfig(index_policy=IndexPolicy.FIXED, target=3))
    trigger = attack.prepare(data, context())
    made = attack.poison(data, trigger, context())
    kinds = torch.bincount(made.kinds.int()).tolist()
    assert kinds == [140, 20, 40]
    covers = (made.kinds == SampleKind.COVER).nonzero().flatten()
    assert torch.equal(made.data.labels[covers], data.labels[covers])
    assert (made.data.labels[made.poisoned_positions] == 3).all()


def test_freezing_gives_a_set_of_any_rate():
    data, attack = data_of(count=200), WaNet(WaNetConfig())
    trigger = attack.prepare(data, context())
    frozen = attack.freeze(data, trigger, context(), rate=0.05)
    assert torch.bincount(frozen.kinds.int()).tolist() == [170, 10, 20]
    assert len(attack.freeze(data, trigger, context()).poisoned_positions) == 20


def test_batches_of_128_have_12_poisoned_and_24_covers():
    data, attack = data_of(count=128), WaNet(WaNetConfig(target=7))
    trigger = attack.prepare(data, context())
    hooks = attack.control(trigger, data, context())
    assert type(hooks) is PerBatchPoisoning
    assert hooks.trigger is trigger
    hooks.options = TrainOptions(batch_size=128)
    everything = torch.arange(128).flip(0)
    batch = Batch(data.images[everything].float() / 255, data.labels[everything], everything)
    made = hooks.before_augmentation(batch, 3)
    assert (made.labels[:12] == 7).all()
    assert torch.equal(made.labels[12:], batch.labels[12:])
    assert torch.equal(made.images[:12], warped(trigger, batch.images[:12]))
    covers = covers_of(trigger, batch.images[12:36], epoch=3, ids=everything[12:36])
    assert torch.equal(made.images[12:36], covers)
    assert torch.equal(made.images[36:], batch.images[36:])


def test_only_the_fixed_policy_leaves_the_training_alone():
    for preset, controls in (("paper", True), ("data", False)):
        (info,) = backdoorkit_attacks()
        config = structure(WaNetConfig, info.presets[preset])
        assert config.controls_training is controls
        hooks = WaNet(config).control(trigger_for(), data_of(), context())
        assert (hooks is not None) is controls


def test_a_controlled_training_learns_the_warp_and_not_the_noise():
    data, test = tiny_images(512, seed=1), tiny_images(200, seed=2)
    attack = WaNet(WaNetConfig(strength=4.0, poison_rate=0.3, cover_ratio=1.0))
    surroundings = tiny_context("wanet")
    trigger = attack.prepare(data, surroundings)
    hooks = attack.control(trigger, data, surroundings)
    model = tiny_network()
    options = TrainOptions(epochs=30, batch_size=32, learning_rate=0.1, precision="float32")
    surroundings.fit(model, data, options, hooks=hooks)
    pixels, others = test.images.float() / 255, test.labels != 0

    def predicted(images):
        with torch.no_grad():
            return model.eval()(images).argmax(1)

    clean, hit = predicted(pixels), predicted(warped(trigger, pixels, test.ids))
    noisy = predicted(covers_of(trigger, pixels, ids=test.ids))
    assert (clean == test.labels).float().mean() > 0.9
    assert (hit[others] == 0).float().mean() > 0.7
    assert (noisy == test.labels).float().mean() > 0.7
