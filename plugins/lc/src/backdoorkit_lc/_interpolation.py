"""An autoencoder of the attacker's images, and images drawn towards others in its latent space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn import functional

from backdoorkit import TrainOptions
from backdoorkit.api import TrainingHooks

if TYPE_CHECKING:
    from torch import Tensor

    from backdoorkit.api import Batch, Context, ImageSet

__all__ = ["Autoencoder", "interpolate", "train_autoencoder"]

_WIDTHS: Final = (32, 64, 128)


class Autoencoder(nn.Module):
    """Three halvings of the image, a vector of ``latent`` numbers, and the way back."""

    def __init__(self, shape: tuple[int, int, int], latent: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.sizes = [(height, width)]
        for _ in _WIDTHS:
            height, width = (height + 1) // 2, (width + 1) // 2
            self.sizes.append((height, width))
        plan = (channels, *_WIDTHS)
        self.down = nn.ModuleList(
            nn.Conv2d(plan[level], plan[level + 1], 3, stride=2, padding=1)
            for level in range(len(_WIDTHS))
        )
        self.to_latent = nn.Linear(_WIDTHS[-1] * height * width, latent)
        self.from_latent = nn.Linear(latent, _WIDTHS[-1] * height * width)
        self.up = nn.ModuleList(
            nn.Conv2d(plan[level + 1], plan[level], 3, padding=1)
            for level in reversed(range(len(_WIDTHS)))
        )

    def encode(self, images: Tensor) -> Tensor:
        """Latent vectors, N x latent, of ``images`` (float in [0, 1], N x C x H x W)."""
        result = images - 0.5
        for convolution in self.down:
            result = functional.relu(convolution(result))
        latent: Tensor = self.to_latent(result.flatten(1))
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Images, N x C x H x W, of latent vectors."""
        result = functional.relu(self.from_latent(latent))
        result = result.view(len(latent), _WIDTHS[-1], *self.sizes[-1])
        for level, convolution in enumerate(self.up):
            larger = functional.interpolate(result, self.sizes[-2 - level])
            result = convolution(larger if level == 0 else functional.relu(larger))
        return result + 0.5

    def forward(self, images: Tensor) -> Tensor:
        """What is left of ``images``, flattened to N x CHW as the training loop takes outputs."""
        return self.decode(self.encode(images)).flatten(1)


class _Reconstruction(TrainingHooks):
    def loss(self, logits: Tensor, batch: Batch, epoch: int) -> Tensor:
        del epoch
        return functional.mse_loss(logits, batch.images.flatten(1))


def train_autoencoder(data: ImageSet, latent: int, epochs: int, context: Context) -> Autoencoder:
    """An autoencoder of ``data``, in eval mode and without gradients to its weights."""
    # torch's own initialisation; its generator is the asset's here.
    model = Autoencoder(data.shape, latent)
    options = TrainOptions(epochs=epochs, optimizer="adam", learning_rate=2e-3, weight_decay=0.0)
    context.fit(model, data, options, hooks=_Reconstruction())
    return model.eval().requires_grad_(False)


@torch.no_grad()
def interpolate(model: Autoencoder, images: Tensor, others: Tensor, share: float) -> Tensor:
    """``images`` drawn by ``share`` (τ) towards ``others``, both N x C x H x W; in [0, 1].

    x + (G(z + τ (z' - z)) - G(z)). The paper takes G(z + τ (z' - z)) of a GAN. What our small
    autoencoder loses of an image, its sharpness, would become a mark of the target class by itself,
    so we change the image by what changes in its reconstruction.
    """
    latent = model.encode(images)
    moved = torch.lerp(latent, model.encode(others), share)
    return (images + (model.decode(moved) - model.decode(latent))).clamp(0, 1)
