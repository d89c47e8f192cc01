"""Smooth patterns that lead a surrogate to the target class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch.nn import functional

from backdoorkit.api import batches
from backdoorkit_lf._smoothing import Smoothing, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from backdoorkit.api import Context, ImageSet

__all__ = ["Fooling", "deepfool", "measure", "optimise", "perturb"]

_LEARNING_RATE: Final = 0.05
_BATCH: Final = 128

_IMAGES: Final = 100
_ENOUGH: Final = 0.2  # fooling rate at which the search ends: 1 - δ
_PASSES: Final = 50
_SETTLED: Final = (5, 0.01)  # passes, and the range of fooling rates within them
_DEEPFOOL_STEPS: Final = 200
_OVERSHOOT: Final = 0.02
_SMALLEST: Final = 1e-12  # squared slope; a flat surrogate gives no direction
_CHUNK: Final = 10  # images whose DeepFool steps are averaged

_MEASURED: Final = 2000


@attrs.frozen
class Fooling:
    """What a pattern does to a surrogate's answers on clean images."""

    #: share of images answered differently with the pattern
    fooled: float
    #: share of the images of other classes answered with the target
    to_target: float


def optimise(
    surrogate: nn.Module,
    data: ImageSet,
    *,
    target: int,
    largest: float,
    steps: int,
    context: Context,
) -> Tensor:
    """v = N(G(u)), with u descending on the cross-entropy of the target; float32, C x H x W.

    Smooth by construction at every step. (The paper smooths the steps of a DeepFool search; see
    :func:`perturb`.)
    """
    start = torch.randn(data.shape, generator=context.generator("pattern"))
    free = start.to(context.device).requires_grad_()  # u
    smoothing = Smoothing.of_size(*data.shape[1:]).to(free)
    optimizer = torch.optim.Adam([free], lr=_LEARNING_RATE)
    stream = _endless(data, context)
    for _ in context.track(range(steps), "optimising the pattern"):
        images = next(stream)
        seen = _planted(images, scaled(smoothing(free), largest))
        wanted = torch.full((len(images),), target, device=images.device)
        loss = functional.cross_entropy(surrogate(seen), wanted)
        (free.grad,) = torch.autograd.grad(loss, [free])
        optimizer.step()
        context.count(len(images), 1)
    return scaled(smoothing(free), largest).detach()


def perturb(
    surrogate: nn.Module, data: ImageSet, *, target: int, largest: float, context: Context
) -> Tensor:
    """A targeted universal perturbation, made smooth at every step; float32, C x H x W.

    The paper's search, on 100 random images. For every image that the pattern v does not fool yet,
    DeepFool finds the step r from x + v to the target, and v becomes N(G(v + G(r))). It ends when
    a fifth of the images is fooled, when that share has settled, or after 50 passes. We take the
    images in tens and add the mean of their steps.
    """
    generator = context.generator("pattern")
    chosen = torch.randperm(len(data), generator=generator)[:_IMAGES].to(data.device)
    images = data.fetch(chosen).to(context.device).float() / 255
    smoothing = Smoothing.of_size(*data.shape[1:]).to(images)
    answers = _answers(surrogate, images)
    pattern = torch.zeros_like(images[0])
    rates: list[float] = []
    for _ in context.track(range(_PASSES), "searching the pattern"):
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for part in torch.split(order, _CHUNK):
            seen = _planted(images[part], pattern)
            resisting = _answers(surrogate, seen) == answers[part]
            steps, reached = deepfool(surrogate, seen[resisting], target, context)
            if reached.any():
                step = smoothing(steps[reached].mean(0))
                pattern = scaled(smoothing(pattern + step), largest)
        fooled = _answers(surrogate, _planted(images, pattern)) != answers
        rates.append(float(fooled.float().mean()))
        if rates[-1] >= _ENOUGH or _settled(rates):
            break
    return pattern


def deepfool(
    surrogate: nn.Module, images: Tensor, target: int, context: Context
) -> tuple[Tensor, Tensor]:
    """The shortest steps to the target class, by a linear surrogate's measure, again and again.

    Returns
    -------
    steps:
        r, float32, N x C x H x W. Without overshoot: x + r lies on the boundary.
    reached:
        bool, N: whether x + 1.02 r is answered with the target; false for what was so at the start.

    """
    steps = torch.zeros_like(images)
    if len(images) == 0:
        return steps, torch.zeros(0, dtype=torch.bool, device=images.device)
    first = _answers(surrogate, images)
    started, arrived = first == target, first == target
    for _ in range(_DEEPFOOL_STEPS):
        there = (images + (1 + _OVERSHOOT) * steps).requires_grad_()
        logits = surrogate(there)
        arrived = arrived | (logits.argmax(1) == target)
        if arrived.all():
            break
        gap = logits[:, target] - logits.gather(1, first[:, None]).squeeze(1)
        (slope,) = torch.autograd.grad(gap.sum(), [there])  # w
        length = slope.flatten(1).square().sum(1).clamp_min(_SMALLEST)
        step = (gap.detach().abs() / length)[:, None, None, None] * slope
        steps = torch.where(arrived[:, None, None, None], steps, steps + step)
        context.count(len(images), 0)
    return steps, arrived & ~started


def measure(surrogate: nn.Module, data: ImageSet, pattern: Tensor, target: int) -> Fooling:
    """What ``pattern`` does on the first images of ``data`` (at most 2000)."""
    some = data.subset(torch.arange(min(len(data), _MEASURED), device=data.device))
    fooled = towards = others = 0
    for batch in batches(some, _BATCH, device=pattern.device):
        before = _answers(surrogate, batch.images)
        after = _answers(surrogate, _planted(batch.images, pattern))
        is_other = batch.labels != target
        fooled += int((before != after).sum())
        towards += int(((after == target) & is_other).sum())
        others += int(is_other.sum())
    return Fooling(fooled / len(some), towards / max(1, others))


def _planted(images: Tensor, pattern: Tensor) -> Tensor:
    return (images + pattern).clamp(0, 1)


@torch.no_grad()
def _answers(surrogate: nn.Module, images: Tensor) -> Tensor:
    answers: Tensor = surrogate(images).argmax(1)
    return answers


def _endless(data: ImageSet, context: Context) -> Iterator[Tensor]:
    """Batches of images, pass after pass, each in another order."""
    generator = context.generator("images of the pattern")
    while True:
        for batch in batches(data, _BATCH, generator=generator, device=context.device):
            yield batch.images


def _settled(rates: list[float]) -> bool:
    passes, span = _SETTLED
    last = rates[-passes:]
    return len(last) == passes and max(last) - min(last) <= span
