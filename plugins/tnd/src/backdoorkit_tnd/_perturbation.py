"""Masks and patterns for many classes at once: losses, steps and the search for small masks.

Tensors begin with K (classes) and P (perturbations per class: one universal, or one per image),
then C x H x W. In eval mode images do not see each other and Adam works element by element, so that
every class gets what it would get alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

__all__ = ["Adam", "Found", "hinge", "margins", "perturb", "search", "shrink", "single"]

_BETAS: Final = (0.9, 0.999)


def perturb(images: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """x̂ = (1 − m) x + m δ; a mask of zeros gives the images bit for bit. Everything broadcasts."""
    return torch.lerp(images, pattern, mask)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """f_label − max over the other classes; logits are ... x K, labels broadcast to the rest."""
    index = labels.expand(logits.shape[:-1])[..., None]
    own = logits.gather(-1, index)[..., 0]
    others = logits.scatter(-1, index, -torch.inf).amax(dim=-1)
    return own - others


def hinge(logits: Tensor, labels: Tensor, classes: Tensor, floor: float) -> Tensor:
    """Terms (K x N) of the universal loss: other images leave their class, the class's own stay.

    max(f_y − max f_t, −τ) where y is not k, and max(max f_t − f_k, −τ) where it is. That this has
    them all go to k is a consequence, not an aim.

    Parameters
    ----------
    logits:
        K x N x K: of every image under the perturbation of every class.
    labels:
        N: true classes.
    classes:
        int64: the classes that the rows are about.
    floor:
        τ, zero or more.

    """
    sign = torch.where(labels[None] == classes[:, None], -1.0, 1.0)
    return (sign * margins(logits, labels)).clamp(min=-floor)


def single(logits: Tensor, classes: Tensor, floor: float) -> Tensor:
    """Terms (K x N) of the loss of single images: max(max f_t − f_k, −τ)."""
    return (-margins(logits, classes[:, None])).clamp(min=-floor)


def shrink(mask: Tensor, by: Tensor | float) -> Tensor:
    """The proximal step of ``by`` times the L1 norm, then the box: clip(soft(m), 0, 1)."""
    return (mask - by).clamp(0, 1)  # what is below zero after it is clipped to zero anyway


class Adam:
    """Adam on one tensor, step by step."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._mean = self._square = torch.zeros(())
        self._steps = 0

    @torch.no_grad()
    def step(self, values: Tensor, gradient: Tensor) -> Tensor:
        """``values`` after a step along ``gradient``; they are not changed."""
        if not self._steps:
            self._mean, self._square = torch.zeros_like(values), torch.zeros_like(values)
        self._steps += 1
        first, second = _BETAS
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (self._square / (1 - second**self._steps)).sqrt_().add_(1e-8)
        return values.addcdiv(self._mean, root, value=-self._rate / (1 - first**self._steps))


@attrs.frozen(kw_only=True, eq=False)
class Found:
    """One perturbation per row."""

    mask: Tensor
    pattern: Tensor
    #: bool, K: whether enough images were won over
    succeeded: Tensor
    #: K: sum of the mask's values
    area: Tensor


def descend(
    loss: Callable[[Tensor], Tensor],
    images: Tensor,
    shape: tuple[int, ...],
    strength: Tensor,
    *,
    steps: Callable[[], Iterable[object]],
    mask_rate: float,
    pattern_rate: float,
    pattern_start: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Alternating proximal Adam: mask, shrinking, pattern, in every step.

    Parameters
    ----------
    loss:
        Terms (K x N) of perturbed images, which it is given as K x N x C x H x W.
    images:
        N x C x H x W.
    shape:
        K x P x C x H x W of masks and patterns.
    strength:
        c (K): a step shrinks the mask by rate / c.
    steps:
        Called once: what is iterated over, a step each.

    Returns
    -------
    tuple of Tensor
        Mask, pattern, the terms at the end, and the largest share of negative terms (K) of all
        steps, the end included.

    """
    mask = torch.zeros(shape, device=images.device)
    pattern = torch.full(shape, pattern_start, device=images.device)
    masks, patterns = Adam(mask_rate), Adam(pattern_rate)
    by = (mask_rate / strength)[:, None, None, None, None]
    best = torch.zeros(shape[0], device=images.device)
    for _ in steps():
        mask.requires_grad_()
        terms = loss(perturb(images, mask, pattern))
        best = torch.maximum(best, _won(terms))
        (gradient,) = torch.autograd.grad(terms.sum(), mask)
        mask = shrink(masks.step(mask.detach(), gradient), by)
        pattern.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(perturb(images, mask, pattern)).sum(), pattern)
        pattern = patterns.step(pattern.detach(), gradient).clamp(0, 1)
    with torch.no_grad():
        terms = loss(perturb(images, mask, pattern))
    return mask, pattern, terms, torch.maximum(best, _won(terms))


def _won(terms: Tensor) -> Tensor:
    """Share of images whose term is negative; a tie is not won."""
    return (terms.detach() < 0).float().mean(dim=1)


def search(
    run: Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]],
    classes: int,
    *,
    first: float,
    bounds: tuple[float, float],
    rounds: int,
    success_share: float,
    success_at: str,
    least_area: float,
    device: torch.device,
) -> Found:
    """Bisection of the strength c, by class, for the smallest mask that wins enough images over.

    ``run`` descends with given strengths (K). A class without a success keeps its last round.
    """
    strength = torch.full((classes,), first, device=device)
    lower, upper = (torch.full_like(strength, bound) for bound in bounds)
    best: Found | None = None
    for _ in range(rounds):
        mask, pattern, terms, reached = run(strength)
        share = _won(terms) if success_at == "end" else reached
        succeeded = share > success_share
        area = mask.sum(dim=(1, 2, 3, 4))
        now = Found(
            mask=mask, pattern=pattern, succeeded=succeeded & (area > least_area), area=area
        )
        best = now if best is None else _smaller(best, now)
        # Less strength shrinks more: a success can afford it.
        upper, lower = (
            torch.where(succeeded, strength, upper),
            torch.where(succeeded, lower, strength),
        )
        strength = (lower + upper) / 2
    assert best is not None
    return best


def _smaller(best: Found, now: Found) -> Found:
    """By class: the new one where it succeeded with a smaller mask, or where nothing has yet."""
    takes = torch.where(best.succeeded, now.succeeded & (now.area < best.area), True)
    spread = takes[:, None, None, None, None]
    return Found(
        mask=torch.where(spread, now.mask, best.mask),
        pattern=torch.where(spread, now.pattern, best.pattern),
        succeeded=torch.where(takes, now.succeeded, best.succeeded),
        area=torch.where(takes, now.area, best.area),
    )


def frozen_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (K x N x K) of K x N x C x H x W images."""
    logits: Tensor = model(images.flatten(0, 1))
    return logits.float().view(*images.shape[:2], -1)
