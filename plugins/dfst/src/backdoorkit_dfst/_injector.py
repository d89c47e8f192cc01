"""The feature injector: which neurons the trigger took over, and images that excite them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from backdoorkit.api import Context, Structure
    from backdoorkit_dfst import DFSTConfig

__all__ = [
    "InjectorTraining",
    "compromised",
    "identity_injector",
    "inject",
    "neighbourhood",
    "ssim",
]

#: side of the window that the injector looks through
_WINDOW: Final = 11
#: SSIM's window and constants, for pixels in [0, 1]
_SSIM_SIDE, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
_CHUNK: Final = 128


def identity_injector(channels: int) -> Tensor:
    """θ = [I 0 0 0], C x 4C x 1 x 1: every pixel is what it was."""
    weight = torch.zeros(channels, 4 * channels, 1, 1)
    weight[:, :channels, 0, 0] = torch.eye(channels)
    return weight


def neighbourhood(images: Tensor) -> Tensor:
    """N x 4C x H x W: each pixel, and the maximum, minimum and mean of the 11 x 11 around it.

    Windows end at the image's edges.
    """
    pad = _WINDOW // 2
    largest = functional.max_pool2d(images, _WINDOW, 1, pad)
    smallest = -functional.max_pool2d(-images, _WINDOW, 1, pad)
    mean = functional.avg_pool2d(images, _WINDOW, 1, pad, count_include_pad=False)
    return torch.cat([images, largest, smallest, mean], dim=1)


def inject(images: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """x_d = (1 - α) x + α q_θ(x), with q_θ a linear map of each pixel's neighbourhood, clamped."""
    made = functional.conv2d(neighbourhood(images), weight).clamp(0, 1)
    return torch.lerp(images, made, alpha)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of two batches (N x C x H x W, in [0, 1]), mean over all: 1 if equal.

    A Gaussian window of 11 pixels, or as many (an odd number) as the images have.
    """
    side = min(_SSIM_SIDE, *(length - 1 + length % 2 for length in first.shape[2:]))
    offsets = torch.arange(side, device=first.device) - side // 2
    line = torch.exp(-(offsets**2) / (2 * _SSIM_SIGMA**2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None]
    count = len(first) * first.shape[1]

    def blur(images: Tensor) -> Tensor:
        return functional.conv2d(images.reshape(count, 1, *images.shape[2:]), window)

    mean_1, mean_2 = blur(first), blur(second)
    variance_1 = blur(first * first) - mean_1**2
    variance_2 = blur(second * second) - mean_2**2
    covariance = blur(first * second) - mean_1 * mean_2
    similarity = (2 * mean_1 * mean_2 + _SSIM_C1) * (2 * covariance + _SSIM_C2)
    return (
        similarity / ((mean_1**2 + mean_2**2 + _SSIM_C1) * (variance_1 + variance_2 + _SSIM_C2))
    ).mean()


def compromised(poisoned: Tensor, clean: Tensor, ratio: float) -> Tensor:
    """int64, ascending: the neurons S whose mean activation rises most under the trigger.

    ``poisoned`` and ``clean`` are activations, N x neurons; S holds ``ratio`` of the neurons,
    rounded down, and one at least.
    """
    rise = poisoned.mean(dim=0) - clean.mean(dim=0)
    count = max(1, int(ratio * len(rise) + 1e-9))
    return rise.topk(count).indices.sort().values


@attrs.frozen(eq=False, kw_only=True)
class InjectorTraining:
    """q_θ learns to excite the compromised neurons of the victim as it is now.

    L(θ) = CE(f(x_d), t) + w_ssim (1 - SSIM(x_d, x)) - w_detox mean_{k in S} A_k(x_d),

    with the victim f in eval mode and its weights fixed, but gradients through it.
    """

    model: nn.Module
    structure: Structure
    layer: str
    config: DFSTConfig
    context: Context

    def activations(self, images: Tensor, maps: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits, and A (N x neurons): the mean over a neuron's feature map."""
        with self.context.autocast():
            logits = self.model(images)
        found = maps[self.layer].float()
        return logits.float(), found.flatten(2).mean(dim=2) if found.ndim > 2 else found

    def find_compromised(self, styled: Tensor, images: Tensor) -> Tensor:
        """S, from ``images`` and the same with the trigger (N x C x H x W)."""
        with torch.no_grad(), self.structure.feature_maps(self.model, [self.layer]) as maps:
            poisoned, clean = (
                torch.cat([self.activations(part, maps)[1] for part in torch.split(some, _CHUNK)])
                for some in (styled, images)
            )
        return compromised(poisoned, clean, self.config.compromised_ratio)

    def objective(
        self,
        weight: Tensor,
        images: Tensor,
        wanted: Tensor,
        neurons: Tensor,
        maps: Mapping[str, Tensor],
    ) -> Tensor:
        """L, 0-d."""
        config = self.config
        made = inject(images, weight, config.alpha)
        logits, activations = self.activations(made, maps)
        loss = functional.cross_entropy(logits, wanted)
        loss = loss + config.ssim_weight * (1 - ssim(made, images))
        return loss - config.detox_weight * activations[:, neurons].mean()

    def train(
        self,
        images: Tensor,
        wanted: Tensor,
        neurons: Tensor,
        generator: torch.Generator,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """θ, from the identity on, by Adam.

        Parameters
        ----------
        images:
            float32 in [0, 1], N x C x H x W: clean.
        wanted:
            int64, N: the attacker's label for each.
        watch:
            Called with the loss of every step.

        """
        config = self.config
        weight = identity_injector(images.shape[1]).to(images.device).requires_grad_()
        optimizer = torch.optim.Adam([weight], config.injector_learning_rate, betas=(0.5, 0.9))
        steps = 0
        with self.structure.feature_maps(self.model, [self.layer]) as maps:
            for _ in range(config.injector_epochs):
                order = torch.randperm(len(images), generator=generator).to(images.device)
                for rows in torch.split(order, _CHUNK):
                    loss = self.objective(weight, images[rows], wanted[rows], neurons, maps)
                    (weight.grad,) = torch.autograd.grad(loss, [weight])
                    optimizer.step()
                    steps += 1
                    if watch is not None:
                        watch(loss.detach())
        self.context.count(config.injector_epochs * len(images), steps)
        return weight.detach()
