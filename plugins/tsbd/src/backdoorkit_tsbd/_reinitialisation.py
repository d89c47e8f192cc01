"""Stage 1: which neurons clean unlearning moves most, and which of their weights to zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Generator, Tensor, nn

__all__ = ["neuron_weight_change", "reinitialisation_mask", "weight_change", "zero_weights"]


def weight_change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """|θ_ul − θ_bd| of each weight tensor of ``before`` (float32, units x ...)."""
    return {
        name: (after[name].detach().float() - weight.detach().float()).abs()
        for name, weight in before.items()
    }


def neuron_weight_change(change: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """NWC of each neuron: the L1 norm of the change of its incoming weights, bias apart.

    The sum is not divided by the fan-in: neurons of all layers compete in one ranking, and wide
    ones are meant to weigh more.
    """
    return {name: tensor.flatten(1).sum(dim=1) for name, tensor in change.items()}


def reinitialisation_mask(
    change: Mapping[str, Tensor],
    neuron_ratio: float,
    zero_ratio: float,
    *,
    order: Literal["nwc", "random", "reversed"] = "nwc",
    generator: Generator | None = None,
) -> dict[str, Tensor]:
    """Which weights stage 1 sets to zero (bool, shaped as ``change``).

    The ``neuron_ratio`` (n) of all neurons with the largest NWC pool their weights; of the pool,
    the ``zero_ratio`` (m) that changed most is zeroed, ties at the threshold τ included. A weight
    that did not change at all is never zeroed.
    """
    chosen = _top_neurons(neuron_weight_change(change), neuron_ratio, order, generator)
    pool = torch.cat([tensor[chosen[name]].flatten() for name, tensor in change.items()])
    count = _share(zero_ratio, len(pool))
    if count == 0:
        return {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in change.items()}
    threshold = pool.kthvalue(len(pool) - count + 1).values  # τ
    return {
        name: _rows(chosen[name], tensor) & (tensor >= threshold) & (tensor > 0)
        for name, tensor in change.items()
    }


@torch.no_grad()
def zero_weights(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights under ``masks`` (bool, by parameter name) to zero."""
    for name, mask in masks.items():
        model.get_parameter(name).masked_fill_(mask, 0)


def _top_neurons(
    scores: Mapping[str, Tensor], ratio: float, order: str, generator: Generator | None
) -> dict[str, Tensor]:
    """The first ``ratio`` of the neurons, layer by layer (bool), in one ranking of all layers."""
    ranked = torch.cat(list(scores.values()))
    if order == "random":
        first = torch.randperm(len(ranked), generator=generator).to(ranked.device)
    else:
        first = ranked.argsort(descending=order == "nwc", stable=True)
    chosen = torch.zeros_like(ranked, dtype=torch.bool)
    chosen[first[: _share(ratio, len(ranked))]] = True
    parts = torch.split(chosen, [len(layer) for layer in scores.values()])
    return dict(zip(scores, parts, strict=True))


def _share(ratio: float, total: int) -> int:
    """``ratio`` of ``total``, rounded down, where 0.29 of 100 is 29 and not 28."""
    return int(ratio * total + 1e-6)


def _rows(chosen: Tensor, like: Tensor) -> Tensor:
    return chosen.view(-1, *[1] * (like.ndim - 1))
