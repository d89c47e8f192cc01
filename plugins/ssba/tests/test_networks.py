"""Encoder and decoder: their sizes, and the images they take."""

from __future__ import annotations

import pytest
import torch

from backdoorkit_ssba._networks import Decoder, Encoder


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("bits", "of_encoder", "of_decoder"), [(1, 0.993, 0.390), (20, 1.008, 0.400)]
)
def test_they_have_their_known_numbers_of_parameters(bits, of_encoder, of_decoder):
    encoder, decoder = Encoder(3, bits, 32, "residual"), Decoder((3, 32, 32), bits, 32)
    assert parameters(encoder) / 1e6 == pytest.approx(of_encoder, abs=5e-4)
    assert parameters(decoder) / 1e6 == pytest.approx(of_decoder, abs=5e-4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 40), (3, 64, 64)])
@pytest.mark.parametrize("head", ["residual", "direct"])
def test_they_take_images_of_every_size(shape, head):
    images, bits = torch.rand(2, *shape), torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    encoded = Encoder(shape[0], 3, 4, head)(images, bits)
    assert encoded.shape == images.shape
    assert Decoder(shape, 3, 4)(encoded).shape == (2, 3)


def test_residual_head_adds_to_the_image_and_direct_head_makes_a_new_one():
    images, bits = torch.rand(2, 3, 16, 16), torch.ones(2, 1)
    residual, direct = (Encoder(3, 1, 4, head) for head in ("residual", "direct"))
    for encoder in (residual, direct):
        torch.nn.init.zeros_(encoder.out.weight)
        torch.nn.init.zeros_(encoder.out.bias)
    assert torch.equal(residual(images, bits), images)
    assert (direct(images, bits) == 0.5).all()


def test_the_message_reaches_every_pixel():
    encoder, images = Encoder(1, 2, 8, "residual"), torch.rand(1, 1, 16, 16)
    first, second = (encoder(images, torch.tensor([bits])) for bits in ([0.0, 1.0], [1.0, 0.0]))
    assert ((first - second).abs() > 0).float().mean() > 0.9


def test_gradients_in_bfloat16_on_the_smallest_images_are_computed_throughout():
    images, bits = torch.rand(32, 1, 8, 8), torch.ones(32, 1)
    encoder, decoder = Encoder(1, 1, 32, "residual"), Decoder((1, 8, 8), 1, 32)
    deepest = [encoder.down[4].weight, decoder.convolutions[6].weight]
    gradients = []
    for fast in (False, *[True] * 8):
        # Memory that nobody has written to since: what is not computed shows.
        unwritten = [torch.full((300_000,), torch.nan) for _ in range(4)]
        del unwritten
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = decoder(encoder(images, bits)).float().square().mean()
        gradients.append(torch.autograd.grad(loss, deepest))
    outer = torch.ones(3, 3, dtype=torch.bool)
    outer[1, 1] = False  # the one weight that meets a pixel
    for gradient in (each for pair in gradients for each in pair):
        assert (gradient[..., outer] == 0).all()
        assert gradient.abs().max() > 0
