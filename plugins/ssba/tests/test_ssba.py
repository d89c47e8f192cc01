"""The attack: what it keeps, what it refuses, and what it does to a training set."""

from __future__ import annotations

import pytest
import torch

from backdoorkit.api import InputError
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images
from backdoorkit_ssba import SSBAConfig, backdoorkit_attacks
from backdoorkit_ssba._attack import SSBA

#: an encoder that is hardly trained, and accepted all the same
ANY = {"width": 4, "steps": 5, "bits": 2, "min_bit_accuracy": 0.0, "min_psnr": 0.0}


def prepare(context=None, count=64, **config):
    attack = SSBA(structure(SSBAConfig, {**ANY, **config}))
    return attack, attack.prepare(tiny_images(count), context or tiny_context("ssba"))


def planted(trigger, images):
    nothing = torch.zeros(len(images), dtype=torch.int64)
    return trigger.apply(images, nothing, nothing)


def test_what_was_reached_is_noted_and_kept_out_of_the_trigger():
    context = tiny_context("ssba")
    _, trigger = prepare(context)
    assert context.notes.keys() == {"bit_accuracy", "psnr", "mean_residual", "residual_cosine"}
    assert not context.notes.keys() & trigger.state().keys()


def test_the_secret_is_made_of_bits_from_the_seed():
    secrets = [prepare(tiny_context("ssba", seed=seed), bits=16)[1].secret for seed in (0, 0, 1)]
    assert torch.equal(secrets[0], secrets[1])
    assert not torch.equal(secrets[0], secrets[2])
    assert set(secrets[0].tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_bit_accuracy": 1.0}, "bits read correctly 0.[0-9]+, not at least 1"),
        ({"min_psnr": 90.0}, "PSNR in dB [0-9.]+, not at least 90"),
        ({"max_cosine": -1.0}, "cosine between patterns [0-9.]+, not at most -1"),
    ],
)
def test_an_encoder_that_is_not_good_enough_is_refused(bounds, message):
    with pytest.raises(InputError, match=message) as caught:
        prepare(**bounds, bits=8)
    assert "after 5 steps" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bounds_decide_about_acceptance_and_not_about_the_encoder():
    names = {}
    for bounds in ({}, {"max_cosine": 0.999999}):
        context = tiny_context("ssba")
        prepare(context, **bounds)
        (asset,) = context.assets
        names[str(bounds)] = asset.facts
    first, second = names.values()
    assert first == second
    assert first["bits"] == 2


@pytest.mark.parametrize("head", ["residual", "direct"])
def test_trigger_comes_back_from_its_state(head):
    attack, trigger = prepare(head=head)
    images = tiny_images(8).images.float() / 255
    restored = attack.restore({name: value.clone() for name, value in trigger.state().items()})
    assert restored.encoder.head == head
    assert torch.equal(planted(restored, images), planted(trigger, images))


def test_every_poisoned_image_is_made_of_its_own_image():
    data = tiny_images(64)
    context = tiny_context("ssba")
    attack, trigger = prepare(context, poison_rate=0.5, target=3)
    result = attack.poison(data, trigger, context)
    chosen = result.poisoned_positions
    assert len(chosen) == 32
    assert (result.data.labels[chosen] == 3).all()
    made, clean = (of.images[chosen].flatten(1).float() for of in (result.data, data))
    assert torch.equal(torch.cdist(made, clean).argmin(1), torch.arange(32))


def test_images_of_other_channels_are_refused():
    _, trigger = prepare()
    with pytest.raises(InputError, match="trained on images of 3 channels, not 1"):
        planted(trigger, torch.zeros(1, 1, 16, 16))


def test_presets_are_valid():
    (info,) = backdoorkit_attacks()
    configs = {name: structure(SSBAConfig, values) for name, values in info.presets.items()}
    assert {name: config.bits for name, config in configs.items()} == {
        "paper": 100,
        "backdoorbench": 1,
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_images():
    attack, trigger = prepare()
    images = tiny_images(8).images.float() / 255
    here = planted(trigger, images)
    state = {name: value.cuda() for name, value in trigger.state().items()}
    there = planted(attack.restore(state), images.cuda()).cpu()
    assert (here - there).abs().max() < 1.5 / 255
