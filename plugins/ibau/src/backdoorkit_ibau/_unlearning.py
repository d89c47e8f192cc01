"""One pass of training against a perturbation, with or without its response."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from backdoorkit.api import ContractError, StructureError
from backdoorkit_ibau._hypergradient import hypergradient
from backdoorkit_ibau._perturbation import inner_loss, perturbed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Generator, Tensor, nn

    from backdoorkit.api import Batch, Context
    from backdoorkit_ibau import IBAUConfig

__all__ = ["make_optimizer", "patch_mask", "require_derivatives", "unlearn"]


def patch_mask(count: int, share: float, generator: Generator) -> Tensor:
    """Which of ``count`` images get the perturbation: 0 or 1 (count x 1 x 1 x 1), at least one."""
    patched = max(1, round(share * count))
    mask = torch.zeros(count, 1, 1, 1)
    mask[torch.randperm(count, generator=generator)[:patched]] = 1
    return mask


def unlearn(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    one_pass: Iterable[Batch],
    inner_batch: Batch,
    perturbation: Tensor,
    generator: Generator,
    config: IBAUConfig,
    context: Context,
) -> float:
    """One optimizer step per batch against ``perturbation`` (1 x C x H x W); the mean loss.

    ``inner_batch`` stands for all images where the perturbation's response is estimated.

    Raises
    ------
    ContractError
        where loss or weights are not finite any more.

    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total, images = torch.zeros((), device=perturbation.device), 0
    for batch in one_pass:
        delta = perturbation.detach().requires_grad_(config.implicit)
        mask = patch_mask(len(batch), config.patched_share, generator).to(delta.device)
        moved = perturbed(batch.images, mask * delta, clamp=config.clamp)
        if config.implicit:
            outer = functional.cross_entropy(model(moved), batch.labels)
            everywhere = perturbed(inner_batch.images, delta, clamp=config.clamp)
            inner = inner_loss(model(everywhere), inner_batch.labels, delta, config.penalty)
            gradients = hypergradient(
                outer,
                inner,
                delta,
                parameters,
                steps=config.fixed_point_steps,
                rate=config.fixed_point_rate,
                only_shrinking=config.only_shrinking,
            )
        else:
            with context.autocast():
                outer = functional.cross_entropy(model(moved).float(), batch.labels)
            gradients = torch.autograd.grad(outer, parameters, materialize_grads=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        total += outer.detach() * len(batch)
        images += len(batch)
        context.count(len(batch) + (len(inner_batch) if config.implicit else 0), 1)
    optimizer.zero_grad(set_to_none=True)
    loss = float(total) / images
    _require_finite(loss, model, config)
    return loss


def make_optimizer(model: nn.Module, config: IBAUConfig) -> torch.optim.Optimizer:
    """The outer optimizer; one for all rounds, so that its momenta carry over."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(
            parameters,
            lr=config.learning_rate,
            betas=(config.momentum, 0.999),
            amsgrad=config.amsgrad,
        )
    return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=config.momentum)


def require_derivatives(model: nn.Module, images: Tensor, labels: Tensor, *, second: bool) -> None:
    """Try on a few images whether logits can be differentiated by pixels, once or twice.

    Raises
    ------
    StructureError
        with torch's own reason, which names the operation.

    """
    delta = torch.zeros_like(images[:1], requires_grad=True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise StructureError(
            f"ibau trains all weights, and {type(model).__name__} has none that requires a "
            "gradient; give it a model with trainable parameters"
        )
    try:
        loss = functional.cross_entropy(model(images + delta), labels)
        (slope,) = torch.autograd.grad(loss, delta, create_graph=second)
        if second:
            # Into all leaves: torch tells of an operation that is differentiable once only where
            # it passes it, and gradients of chosen tensors may silently go around it.
            torch.autograd.backward(slope.sum())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        wanted = "second derivatives" if second else "gradients by pixels"
        advice = "set implicit = false, or " if second else ""
        raise StructureError(
            f"ibau needs {wanted}, and {type(model).__name__} has none: {_first_line(error)}; "
            f"{advice}replace that operation"
        ) from error
    finally:
        model.zero_grad(set_to_none=True)


def _first_line(error: RuntimeError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _require_finite(loss: float, model: nn.Module, config: IBAUConfig) -> None:
    weights = torch.stack([parameter.detach().abs().sum() for parameter in model.parameters()])
    if not (math.isfinite(loss) and bool(weights.isfinite().all())):
        raise ContractError(
            f"ibau diverged (mean loss {loss:g}); lower learning_rate (now "
            f"{config.learning_rate:g}) or fixed_point_rate (now {config.fixed_point_rate:g}), or "
            "set implicit = false"
        )
