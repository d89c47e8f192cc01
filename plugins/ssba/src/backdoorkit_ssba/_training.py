"""Training of encoder and decoder, and what they reach on images they have not seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch.nn import functional

from backdoorkit.api import InputError, batches, quantize
from backdoorkit_ssba._networks import Decoder, Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Generator, Tensor, nn

    from backdoorkit.api import Context, ImageSet
    from backdoorkit_ssba import SSBAConfig

__all__ = ["Reached", "encode", "mean_cosine", "measure", "split", "train"]

#: share of a batch's bits that begins the wait for the images to count
_READ: Final = 0.9
#: and the one that lets them count more; below it they count less again
_READ_WELL: Final = 0.98
#: images that are kept from the training, to measure on: this share, and no more than so many
_HELD_OUT: Final = (0.1, 500)
#: images that are encoded at once at 32 x 32; larger ones in smaller chunks
_CHUNK: Final = 256


@attrs.frozen(kw_only=True)
class Reached:
    """What encoder and decoder do on 8-bit images that they were not trained on."""

    #: share of the secret's bits that the decoder reads from images that hold it, in [0, 1]
    bit_accuracy: float
    #: similarity of the images to those without message, in dB
    psnr: float
    #: mean absolute change of a pixel, in [0, 1]
    mean_residual: float
    #: mean cosine between the changes of two images: 1 is one pattern for all
    residual_cosine: float


class _Schedule:
    """How much the images count, from 0 to 1: nothing until the bits are read for the first time,
    and for a wait; then a little more with every batch that is read well, and less with others.

    Kept as tensors on the device, so that nothing waits for it.
    """

    def __init__(self, config: SSBAConfig, device: torch.device) -> None:
        self._wait, self._step = config.wait, 1 / config.ramp
        self._read_at = torch.tensor(math.inf, device=device)
        self.share = torch.tensor(0.0, device=device)

    def read(self, step: int, accuracy: Tensor) -> None:
        """In the batch of this ``step``, the share ``accuracy`` of the bits was read correctly."""
        now = torch.where(accuracy > _READ, float(step), math.inf)
        self._read_at = torch.minimum(self._read_at, now)
        change = torch.where(accuracy >= _READ_WELL, self._step, -self._step)
        is_due = step >= self._read_at + self._wait
        self.share = (self.share + change * is_due).clamp(0, 1)


def train(data: ImageSet, config: SSBAConfig, context: Context) -> tuple[Encoder, Decoder]:
    """Encoder and decoder trained together on ``data``, with random messages.

    The loss is the cross-entropy of the bits plus λ times the mean squared change of the image. The
    image counts only once the bits are learned: from the start it would teach the encoder to change
    nothing. As it comes to count, the decoder comes to read 8-bit images in [0, 1], which are all
    that it will get; from the start, too few gradients would come through black and white.
    """
    device = context.device
    # torch's own initialisation; its generator is the asset's here.
    encoder = Encoder(data.shape[0], config.bits, config.width, config.head).to(device)
    decoder = Decoder(data.shape, config.bits, config.width).to(device)
    encoder.to(memory_format=torch.channels_last)
    decoder.to(memory_format=torch.channels_last)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=config.learning_rate)
    schedule = _Schedule(config, device)
    messages, stream = context.generator("messages"), _endless(data, config, context)
    for step in context.track(range(config.steps), "training the encoder"):
        images = next(stream).contiguous(memory_format=torch.channels_last)
        bits = _random_bits(len(images), config.bits, messages).to(device)
        share = schedule.share
        with context.autocast():
            encoded = encoder(images, bits).float()
            logits = decoder(encoded + share * _lost_in_storage(encoded)).float()
        loss = functional.binary_cross_entropy_with_logits(logits, bits)
        loss = loss + share * config.image_weight * functional.mse_loss(encoded, images)
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.grad = gradient
        optimizer.step()
        schedule.read(step, ((logits > 0) == (bits > 0.5)).float().mean())
        context.count(len(images), 1)
    return encoder.eval().requires_grad_(False), decoder.eval().requires_grad_(False)


def split(data: ImageSet, generator: Generator) -> tuple[ImageSet, ImageSet]:
    """Images to train on, and images to measure on."""
    share, most = _HELD_OUT
    count = min(math.ceil(share * len(data)), most)
    if count < 2 or len(data) - count < 1:
        raise InputError(f"an encoder needs at least 11 images to be trained on, got {len(data)}")
    order = torch.randperm(len(data), generator=generator).to(data.device)
    return data.subset(order[count:]), data.subset(order[:count])


@torch.no_grad()
def encode(encoder: Encoder, images: Tensor, secret: Tensor) -> Tensor:
    """``images`` (float32, N x C x H x W) with the message ``secret`` (float 0 or 1, L) in each.

    In [0, 1], and in chunks, since a U-net holds many copies of its images.
    """
    size = max(1, _CHUNK * 32 * 32 // (images.shape[-2] * images.shape[-1]))
    parts = [
        encoder(part, secret.expand(len(part), -1)).clamp(0, 1)
        for part in torch.split(images, size)
    ]
    return torch.cat(parts) if parts else images.clone()


@torch.no_grad()
def measure(encoder: Encoder, decoder: nn.Module, held_out: ImageSet, secret: Tensor) -> Reached:
    """What is reached with the message ``secret`` in 8-bit images of ``held_out``."""
    positions = torch.arange(len(held_out), device=held_out.device)
    images = held_out.fetch(positions).to(secret.device).float() / 255
    stored = quantize(encode(encoder, images, secret)).float() / 255
    read = torch.cat([decoder(part) for part in torch.split(stored, _CHUNK)]) > 0
    residuals = stored - images
    error = float(residuals.double().square().mean())
    return Reached(
        bit_accuracy=float((read == (secret > 0.5)).double().mean()),
        # Identical images would be infinitely similar; no file could say so.
        psnr=-10 * math.log10(max(error, 1e-12)),
        mean_residual=float(residuals.double().abs().mean()),
        residual_cosine=mean_cosine(residuals),
    )


def mean_cosine(residuals: Tensor) -> float:
    """Mean cosine between each two of ``residuals`` (N x ..., N at least 2); 0 for empty ones."""
    count = len(residuals)
    directions = functional.normalize(residuals.double().flatten(1), dim=1)
    own = directions.square().sum()
    return float((directions.sum(0).square().sum() - own) / (count * (count - 1)))


@torch.no_grad()
def _lost_in_storage(encoded: Tensor) -> Tensor:
    """What 8-bit images differ in from ``encoded``; without gradients, which pass by unchanged."""
    return quantize(encoded).float() / 255 - encoded


def _random_bits(count: int, length: int, generator: Generator) -> Tensor:
    return torch.randint(0, 2, (count, length), generator=generator).float()


def _endless(data: ImageSet, config: SSBAConfig, context: Context) -> Iterator[Tensor]:
    """Batches of images, pass after pass, each in another order."""
    generator = context.generator("images of the encoder")
    while True:
        for batch in batches(data, config.batch_size, generator=generator, device=context.device):
            yield batch.images
