"""Learning-rate schedules and optimizers of the training loop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

from backdoorkit.errors import ContractError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from backdoorkit.hooks.shared_options import TrainOptions

__all__ = [
    "lay_out_gradients",
    "learning_rate_at",
    "load_optimizer_state",
    "make_optimizer",
    "optimizer_state",
    "steps_per_epoch",
]

#: share of the one-cycle schedule in which the learning rate rises
_RISE: Final = 0.25
_FUSED_DEVICES: Final = frozenset({"cpu", "cuda", "mps"})


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Steps in one epoch, where a last batch of one image is merged into the one before."""
    full, rest = divmod(samples, batch_size)
    merged = rest == 1 and full > 0
    return full + (rest > 0 and not merged)


def learning_rate_at(options: TrainOptions, step: int, total_steps: int) -> float:
    """Learning rate of step ``step`` (from 0) out of ``total_steps``.

    ``one-cycle`` is a triangle whose corners lie just outside the steps, so that no step has a
    rate of zero; ``cosine`` begins at the peak; ``step`` divides by ten at each milestone.
    """
    peak = options.learning_rate
    match options.schedule:
        case "constant":
            return peak
        case "cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * step / total_steps))
        case "one-cycle":
            position = (step + 1) / (total_steps + 1)
            return peak * min(position / _RISE, (1.0 - position) / (1.0 - _RISE))
        case "step":
            drops = sum(step >= milestone * total_steps for milestone in options.milestones)
            return float(peak * 0.1**drops)


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimizer over all parameters that require a gradient, fused where torch has that."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ContractError(
            "expected a model with parameters to train, but none requires a gradient; "
            "call requires_grad_(True) on those that are to change"
        )
    if options.nesterov and options.optimizer == "sgd" and options.momentum == 0:
        raise InputError("nesterov momentum needs momentum > 0, not 0; set momentum = 0.9")
    fused = all(
        parameter.device.type in _FUSED_DEVICES and parameter.is_floating_point()
        for parameter in parameters
    )
    if options.optimizer == "adam":
        return torch.optim.Adam(
            parameters,
            lr=options.learning_rate,
            betas=(options.momentum, 0.999),
            weight_decay=options.weight_decay,
            fused=fused,
        )
    return torch.optim.SGD(
        parameters,
        lr=options.learning_rate,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        fused=fused,
    )


def lay_out_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Make every gradient lie in memory as its parameter does.

    Fused kernels walk raw memory and, where the two differ, silently update the wrong weights.
    Autograd keeps to it by itself; gradients that a hook assigns may not.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Momenta and step counts by ``"<number of the parameter>.<name>"``."""
    state: Mapping[int, Mapping[str, object]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Undo :func:`optimizer_state` for an optimizer over the same parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    loaded: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        number, _, name = key.partition(".")
        parameter = parameters[int(number)]
        if value.shape == parameter.shape:
            # Fused kernels walk raw memory: a momentum must lie in memory as its parameter does.
            own = torch.empty_like(parameter.detach()).copy_(value)
        else:
            own = value.clone()
        loaded.setdefault(int(number), {})[name] = own
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": loaded, "param_groups": groups})
