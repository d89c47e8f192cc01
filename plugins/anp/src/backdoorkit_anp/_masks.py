"""Masks on units, learnt on clean images while the units are perturbed as badly as possible."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from backdoorkit.api import Augmentation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Generator, Tensor

    from backdoorkit.api import Context, ImageSet, MaskedModel
    from backdoorkit_anp import ANPConfig

__all__ = ["draw_batches", "learn_masks", "masked_loss", "worst_perturbation"]


def worst_perturbation(
    loss_at: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    epsilon: float,
    steps: int,
    project: bool,
) -> Tensor:
    """A perturbation that raises the loss: ``steps`` sign steps of ε / steps from ``start``.

    With ``project`` it stays in [-ε, ε].
    """
    perturbation = start
    for _ in range(steps):
        perturbation = perturbation.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_at(perturbation), perturbation)
        perturbation = perturbation.detach() + epsilon / steps * gradient.sign()
        if project:
            perturbation = perturbation.clamp(-epsilon, epsilon)
    return perturbation


def learn_masks(
    model: MaskedModel, reserve: ImageSet, config: ANPConfig, context: Context
) -> Tensor:
    """Masks m in [0, 1]^n that keep the loss low without and with the worst perturbation.

    Minimises α L(m, 0, 0) + (1 - α) max L(m, δ, ξ), where a unit's weights are scaled by m + δ and
    its bias by 1 + ξ.
    """
    masks = torch.ones(model.units, device=model.device, requires_grad=True)
    optimizer = torch.optim.SGD([masks], lr=config.learning_rate, momentum=config.momentum)
    generator = context.generator("perturbations", model.device)
    drawn = draw_batches(reserve, config, context)
    for images, labels in context.track(drawn, "learning masks", config.iterations):
        loss = functools.partial(masked_loss, model, images, labels, context)
        perturbation = worst_perturbation(
            functools.partial(loss, masks.detach()),
            uniform((2, model.units), config.epsilon, generator),
            epsilon=config.epsilon,
            steps=config.steps,
            project=config.project,
        )
        optimizer.zero_grad()
        (config.alpha * loss(masks, None)).backward()  # type: ignore[no-untyped-call]
        ((1 - config.alpha) * loss(masks, perturbation)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            masks.clamp_(0, 1)
    passes = (config.steps + 2) * config.batch_size
    context.count(config.iterations * passes, config.iterations)
    return masks.detach()


def masked_loss(
    model: MaskedModel,
    images: Tensor,
    labels: Tensor,
    context: Context,
    masks: Tensor,
    perturbation: Tensor | None,
) -> Tensor:
    """L(m, δ, ξ): cross-entropy under ``masks`` (n) and ``perturbation`` (2 x n), if any."""
    with context.autocast():
        if perturbation is None:
            logits = model(images, masks)
        else:
            delta, xi = perturbation
            logits = model(images, masks + delta, 1 + xi)
        return functional.cross_entropy(logits.float(), labels)


def uniform(shape: tuple[int, ...], bound: float, generator: Generator) -> Tensor:
    """Uniform in [-``bound``, ``bound``], on the generator's device."""
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    return bound * (2 * drawn - 1)


def draw_batches(
    reserve: ImageSet, config: ANPConfig, context: Context
) -> Iterator[tuple[Tensor, Tensor]]:
    """For every iteration, images in [0, 1] and labels drawn with replacement, augmented."""
    augmentation = Augmentation(
        crop_padding=config.crop_padding, horizontal_flip=config.horizontal_flip
    )
    augmenting = context.generator("augmentation")
    shape = (config.iterations, config.batch_size)
    drawn = torch.randint(len(reserve), shape, generator=context.generator("batches"))
    for positions in drawn.to(reserve.device):
        images = augmentation(reserve.fetch(positions), augmenting).float() / 255
        yield images.to(context.device), reserve.labels[positions].to(context.device)
