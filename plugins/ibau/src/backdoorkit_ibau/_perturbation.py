"""The universal perturbation: one for all images, found by ascent."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from backdoorkit.api import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor, nn

    from backdoorkit.api import Batch, Context, ImageSet
    from backdoorkit_ibau import IBAUConfig

__all__ = [
    "answers",
    "ascend",
    "find_perturbation",
    "inner_loss",
    "perturbed",
    "project",
]

_TINY = 1e-12


def perturbed(images: Tensor, perturbation: Tensor, *, clamp: bool) -> Tensor:
    """``images`` (B x C x H x W) with ``perturbation`` added; clamped to [0, 1] on request."""
    moved = images + perturbation
    return moved.clamp(0, 1) if clamp else moved


def inner_loss(logits: Tensor, labels: Tensor, perturbation: Tensor, penalty: float) -> Tensor:
    """What the perturbation minimises: -L + λ ‖δ‖², with L the mean cross-entropy."""
    size = penalty * perturbation.square().sum()
    loss: Tensor = size - functional.cross_entropy(logits.float(), labels)
    return loss


def ascend(perturbation: Tensor, slope: Tensor, *, rate: float, normalized: bool) -> Tensor:
    """One step against ``slope``, the gradient of the inner loss; of length ``rate`` on request."""
    if normalized:
        slope = slope / slope.norm().clamp_min(_TINY)
    return perturbation - rate * slope


def project(perturbation: Tensor, radius: float) -> Tensor:
    """The nearest perturbation whose L2 norm is at most ``radius``."""
    factor: Tensor = (radius / perturbation.norm().clamp_min(_TINY)).clamp_max(1)
    return perturbation * factor


def find_perturbation(
    model: nn.Module,
    one_pass: Callable[[], Iterable[Batch]],
    predicted: Tensor,
    start: Tensor,
    config: IBAUConfig,
    context: Context,
) -> Tensor:
    """δ (1 x C x H x W) that moves the model away from its own answers on clean images.

    ``predicted`` holds those answers (int64, N) by position in the reserve, which ``one_pass()``
    goes through once. The search begins at ``start``.
    """
    perturbation = start
    drawn = itertools.islice(_cycle(one_pass), config.ascent_steps)
    for batch in context.track(drawn, "searching a perturbation", config.ascent_steps):
        perturbation = perturbation.detach().requires_grad_()
        with context.autocast():  # one derivative only, so the fast arithmetic will do
            logits = model(perturbed(batch.images, perturbation, clamp=config.clamp))
            loss = inner_loss(logits, predicted[batch.indices], perturbation, config.penalty)
        (slope,) = torch.autograd.grad(loss, perturbation)
        is_normalized = config.ascent == "normalized"
        perturbation = ascend(
            perturbation.detach(), slope, rate=config.ascent_rate, normalized=is_normalized
        )
        if config.project:
            perturbation = project(perturbation, config.radius)
        context.count(len(batch), 0)
    return perturbation


@torch.inference_mode()
def answers(
    model: nn.Module,
    reserve: ImageSet,
    perturbation: Tensor,
    config: IBAUConfig,
    context: Context,
) -> Tensor:
    """Classes (int64, N) that the model gives the images of ``reserve`` under ``perturbation``."""
    given = [
        model(perturbed(batch.images, perturbation, clamp=config.clamp)).argmax(dim=1)
        for batch in batches(reserve, config.batch_size, device=context.device)
    ]
    return torch.cat(given)


def _cycle(one_pass: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
    """Batches of one pass after the other, without end."""
    while True:
        yield from one_pass()
