"""Training, its schedule, and how its result is measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backdoorkit.api import InputError, quantize
from backdoorkit.hooks.options import structure
from backdoorkit.testing import tiny_context, tiny_images
from backdoorkit_ssba import SSBAConfig
from backdoorkit_ssba._training import (
    _Schedule,
    encode,
    mean_cosine,
    measure,
    split,
    train,
)

SECRET = torch.tensor([0.0, 1.0])
#: learns two bits in some 5 seconds of one core
TINY = {
    "bits": 2,
    "width": 8,
    "steps": 300,
    "batch_size": 32,
    "learning_rate": 2e-3,
    "wait": 10,
    "ramp": 50,
}


@pytest.fixture(scope="module")
def trained():
    context = tiny_context("ssba")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, decoder = train(tiny_images(230), structure(SSBAConfig, TINY), context)
    assert (context.samples_seen, context.gradient_steps) == (37 * 230 + 4 * 32, 300)
    return encoder, decoder


@pytest.fixture(scope="module")
def held_out():
    return tiny_images(60, seed=5)


def read(decoder, images):
    return (decoder(quantize(images).float() / 255) > 0).float()


def test_messages_are_read_from_8_bit_images_that_were_never_seen(trained, held_out):
    reached = measure(*trained, held_out, SECRET)
    assert reached.bit_accuracy >= 0.95
    assert reached.psnr >= 24
    assert 0.005 < reached.mean_residual < 0.06


def test_another_message_is_read_as_the_other(trained, held_out):
    encoder, decoder = trained
    images = held_out.images.float() / 255
    for secret in (SECRET, 1 - SECRET):
        bits = read(decoder, encode(encoder, images, secret))
        assert (bits == secret).float().mean() >= 0.95


def test_the_pattern_depends_on_the_image_and_the_message(trained, held_out):
    encoder, _ = trained
    images = held_out.images.float() / 255
    residuals = encode(encoder, images, SECRET) - images
    others = encode(encoder, images, 1 - SECRET) - images
    assert mean_cosine(residuals) < 0.99
    assert nn.functional.cosine_similarity(residuals.flatten(1), others.flatten(1)).max() < 0.9


def test_the_same_image_and_message_give_the_same_result_in_every_batch(trained, held_out):
    encoder, _ = trained
    images = held_out.images.float() / 255
    whole = encode(encoder, images, SECRET)
    assert torch.equal(whole, encode(encoder, images, SECRET))
    parts = torch.cat([encode(encoder, part, SECRET) for part in images.split(7)])
    assert torch.allclose(parts, whole, atol=1e-5)
    assert 0 <= whole.min() <= whole.max() <= 1


def test_images_count_once_bits_are_read_and_count_less_where_they_are_not():
    schedule = _Schedule(structure(SSBAConfig, {"wait": 2, "ramp": 4}), torch.device("cpu"))
    shares = []
    for step, accuracy in enumerate([0.5, 0.95, 1.0, 1.0, 1.0, 0.9, 1.0, 1.0, 1.0, 1.0]):
        schedule.read(step, torch.tensor(accuracy))
        shares.append(schedule.share.item())
    assert shares == [0, 0, 0, 0.25, 0.5, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_the_image_weight_makes_changes_smaller():
    data, changes = tiny_images(64), []
    for weight in (0.0, 50.0):
        config = structure(SSBAConfig, {**TINY, "bits": 1, "steps": 100, "image_weight": weight})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            networks = train(data, config, tiny_context("ssba"))
        changes.append(measure(*networks, data, torch.ones(1)).mean_residual)
    assert changes[1] < 0.5 * changes[0]


def test_measures_have_their_known_values():
    data = tiny_images(20)
    data = data.replaced(torch.arange(20), data.images.clamp(5, 200), data.labels)

    class Brighter(nn.Module):
        def forward(self, images, bits):
            return images + 5 / 255

    class Ones(nn.Module):
        def forward(self, images):
            return torch.ones(len(images), 4)

    reached = measure(Brighter(), Ones(), data, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert reached.bit_accuracy == 0.75
    assert reached.psnr == pytest.approx(34.151, abs=1e-3)  # 20 log10(255 / 5)
    assert reached.mean_residual == pytest.approx(5 / 255)
    assert reached.residual_cosine == pytest.approx(1)


def test_mean_cosine_is_that_of_all_pairs():
    residuals = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    rows = nn.functional.normalize(residuals.flatten(1), dim=1)
    pairs = [float(rows[i] @ rows[j]) for i in range(7) for j in range(7) if i != j]
    assert mean_cosine(residuals) == pytest.approx(sum(pairs) / 42, abs=1e-6)
    assert mean_cosine(torch.eye(3)) == pytest.approx(0)
    assert mean_cosine(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(-1)
    assert mean_cosine(torch.zeros(3, 4)) == 0


def test_a_tenth_of_the_images_is_held_out_and_no_more_than_500():
    to_train, held_out = split(tiny_images(40), torch.Generator().manual_seed(0))
    assert (len(to_train), len(held_out)) == (36, 4)
    assert set(to_train.ids.tolist()).isdisjoint(held_out.ids.tolist())
    _, held_out = split(tiny_images(6000, image_shape=(1, 2, 2)), torch.Generator().manual_seed(0))
    assert len(held_out) == 500


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="at least 11 images"):
        split(tiny_images(8), torch.Generator())
