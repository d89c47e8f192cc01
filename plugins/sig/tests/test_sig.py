"""The sinusoid, and who gets it under which label."""

from __future__ import annotations

import pytest
import torch

from backdoorkit import RateBasis
from backdoorkit.api import Context, ImageSet, InputError, quantize
from backdoorkit.errors import ConfigError
from backdoorkit.hooks.options import structure
from backdoorkit_sig import SIGConfig, backdoorkit_attacks
from backdoorkit_sig._attack import SIG, sinusoid

EIGHT_COLUMNS = [0, 36.955, 28.284, -15.307, -40, -15.307, 28.284, 36.955]


def images_of(shape, count=20, low=0, high=256):
    """Random float images on the 8-bit grid."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(low, high, (count, *shape), generator=generator).float() / 255


def data_of(shape, count=200, num_classes=10, device="cpu"):
    labels = torch.arange(count) % num_classes
    images = quantize(images_of(shape, count)).to(device)
    return ImageSet.from_tensors(images, labels.to(device), num_classes=num_classes)


def context(device="cpu"):
    return Context(method="sig", seed=0, device=torch.device(device))


def trigger_for(shape=(3, 32, 32), **config):
    return SIG(structure(SIGConfig, config)).prepare(data_of(shape), context())


def planted(trigger, images):
    nothing = torch.zeros(len(images), dtype=torch.int64)
    return trigger.apply(images, nothing, nothing)


def poisoned(data, **config):
    attack = SIG(structure(SIGConfig, config))
    trigger = attack.prepare(data, context())
    return attack.poison(data, trigger, context()), trigger


# -- signal ----------------------------------------------------------------------------------------


def test_signal_has_its_known_values_and_periods():
    signal = sinusoid(32, 40, 6)
    assert signal[:8].tolist() == pytest.approx(EIGHT_COLUMNS, abs=1e-3)
    assert torch.allclose(signal[8:16], -signal[:8])
    assert torch.allclose(signal[16:], signal[:16])
    assert signal.mean().item() == pytest.approx(0, abs=1e-12)
    assert signal.square().mean().sqrt().item() == pytest.approx(28.284, abs=1e-3)
    assert signal.abs().mean().item() == pytest.approx(25.137, abs=1e-3)


def test_grey_becomes_the_known_row_by_rounding():
    image = quantize(planted(trigger_for(), torch.full((1, 3, 32, 32), 128 / 255)))
    assert image[0, 0, 0, :8].tolist() == [128, 165, 156, 113, 88, 113, 156, 165]
    assert (image == image[:1, :1, :1]).all()  # stripes stand upright, grey


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (3, 32, 40)])
def test_where_nothing_is_clipped_exactly_the_signal_is_added(shape):
    images = images_of(shape, low=45, high=210)
    before = images.clone()
    difference = 255 * (planted(trigger_for(shape), images) - images)
    expected = sinusoid(shape[-1], 40, 6).float().expand_as(images)
    assert torch.allclose(difference, expected, atol=1e-3)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("grey", "clipped"), [(0, 0), (255, 255)])
def test_black_and_white_are_clipped_not_wrapped(grey, clipped):
    image = quantize(planted(trigger_for(), torch.full((1, 1, 32, 32), grey / 255)))
    expected = (grey + sinusoid(32, 40, 6)).clamp(0, 255).round()
    assert image[0, 0, 5].tolist() == expected.tolist()
    assert (image == clipped).any()


def test_frequency_counts_periods_over_the_width():
    spectrum = torch.fft.rfft(sinusoid(64, 20, 9)).abs()
    assert spectrum.argmax() == 9
    assert spectrum[9].item() == pytest.approx(20 * 64 / 2)


def test_wrapped_blend_has_the_released_mask():
    trigger = trigger_for(**presets()["abl-released"])
    mask = (5 * 255 * trigger.signal).round().flatten()
    assert mask[:13].tolist() == [0, 14, 19, 13, 255, 241, 237, 244, 2, 15, 19, 11, 253]
    image = quantize(planted(trigger, torch.full((1, 1, 32, 32), 100 / 255)))
    assert image[0, 0, 0, :5].tolist() == [80, 83, 84, 83, 131]  # 80 + mask / 5


def test_images_of_another_width_are_refused():
    with pytest.raises(InputError, match="32 pixels wide, not 28"):
        planted(trigger_for(), torch.zeros(1, 3, 28, 28))


def test_signal_comes_back_from_its_state():
    images = images_of((3, 32, 32))
    for config in ({"test_delta": 60.0}, {"wrapped_blend": True}):
        trigger = trigger_for(**config)
        restored = SIG(SIGConfig()).restore(trigger.state())
        assert torch.equal(planted(restored, images), planted(trigger, images))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_images():
    data = data_of((3, 32, 32))
    attack = SIG(SIGConfig())
    there = attack.poison(
        data_of((3, 32, 32), device="cuda"),
        attack.prepare(data, context("cuda")),
        context("cuda"),
    )
    here, _ = poisoned(data)
    difference = there.data.images.cpu().int() - here.data.images.int()
    assert difference.abs().max() <= 1


# -- poisoning -------------------------------------------------------------------------------------


def test_by_default_every_image_of_the_target_class_and_no_other_is_altered():
    data = data_of((3, 32, 32))
    result, trigger = poisoned(data, target=3)
    chosen = result.poisoned_positions
    assert torch.equal(chosen, (data.labels == 3).nonzero().flatten())
    assert torch.equal(result.data.labels, data.labels)
    expected = quantize(planted(trigger, data.images[chosen].float() / 255))
    assert torch.equal(result.data.images[chosen], expected)
    others = data.labels != 3
    assert torch.equal(result.data.images[others], data.images[others])


def test_a_share_of_the_target_class_keeps_its_labels_too():
    data = data_of((1, 8, 8))
    result, _ = poisoned(data, rate_basis="target-class", poison_rate=0.5)
    chosen = result.poisoned_positions
    assert len(chosen) == 10
    assert (data.labels[chosen] == 0).all()
    assert torch.equal(result.data.labels, data.labels)


def test_more_poison_than_the_class_has_is_refused():
    with pytest.raises(InputError, match="wants 40 samples of the target class and there are 20"):
        poisoned(data_of((1, 8, 8)), rate_basis="all-within-target", poison_rate=0.2)


def test_dirty_labels_are_drawn_from_all_classes_and_changed():
    data = data_of((1, 8, 8))
    result, _ = poisoned(data, rate_basis="all", poison_rate=0.5, target=4)
    chosen = result.poisoned_positions
    assert len(chosen) == 100
    assert len(data.labels[chosen].unique()) == 10
    assert (result.data.labels[chosen] == 4).all()


def test_signal_may_be_stronger_at_test_time():
    data = data_of((3, 32, 32))
    result, trigger = poisoned(data, delta=20.0, test_delta=60.0)
    chosen = result.poisoned_positions
    images = data.images[chosen].float() / 255
    weak, strong = (images + sinusoid(32, delta, 6).float() / 255 for delta in (20, 60))
    assert torch.equal(result.data.images[chosen], quantize(weak))
    assert torch.allclose(planted(trigger, images), strong.clamp(0, 1), atol=1e-6)


# -- configuration ---------------------------------------------------------------------------------


def presets():
    (info,) = backdoorkit_attacks()
    return info.presets


def test_clean_labels_cannot_go_to_all_classes():
    with pytest.raises(ConfigError, match="for dirty labels set rate_basis 'all'"):
        structure(SIGConfig, {"label_map": "all-to-all"})
    assert structure(SIGConfig, {"label_map": "all-to-all", "rate_basis": "all"})


def test_presets_are_valid():
    configs = {name: structure(SIGConfig, values) for name, values in presets().items()}
    benchmark = configs["backdoorbench"]
    assert (benchmark.rate_basis, benchmark.poison_rate) == (RateBasis.ALL_WITHIN_TARGET, 0.1)
    assert configs["paper"].test_delta > configs["paper"].delta
