"""Units under masks: a network scaled unit by unit without changing it, and pruned by its masks.

The units of all masked layers are one vector of n coefficients, layer after layer, so that a method
steps, clamps and sorts them at once.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Literal, Protocol

import attrs
import torch
from torch.func import functional_call

from backdoorkit._modes import channels_last_weights, modes_kept
from backdoorkit.errors import ContractError, InputError, StructureError
from backdoorkit.hooks.shared_options import Selection
from backdoorkit.selection import largest_accepted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from backdoorkit.context import Context
    from backdoorkit.data.images import ImageSet
    from backdoorkit.models.structure import PrunableLayer, Structure

__all__ = [
    "MaskedModel",
    "PrunedUnits",
    "PruningOptions",
    "UnitPruner",
    "by_layer",
    "lowest_units",
    "masked",
    "masked_layers",
    "prune_by_masks",
]

_NORMS = ("batch-norm", "layer-norm", "group-norm", "instance-norm", "rms-norm")
_NEURONS = ("conv", "linear", "attention")


def masked_layers(
    structure: Structure, units: Literal["auto", "norm", "neuron"], method: str
) -> tuple[PrunableLayer, ...]:
    """The layers whose units are masked, shortcuts included, the head never.

    ``norm`` takes the channels of affine norms (their γ), ``neuron`` the outputs of convolutions
    and linear layers (the rows of their weights), ``auto`` the norms where there are any.

    Raises
    ------
    StructureError
        where the model has no such layer.

    """
    if units == "auto":
        units = "norm" if structure.layers(*_NORMS, shortcuts=True) else "neuron"
    kinds = _NORMS if units == "norm" else _NEURONS
    found = structure.layers(*kinds, shortcuts=True)
    if not found:
        wanted = (
            "norm layers with scales" if units == "norm" else "convolutions or hidden linear layers"
        )
        first = {layer.kind: layer.name for layer in reversed(structure.prunable)}
        present = " and ".join(f"{name!r} ({kind})" for kind, name in sorted(first.items()))
        raise StructureError(
            f"{method} masks the units of {wanted}, and {structure.network} has none: its layers "
            f"with units are such as {present or 'none'}; set units = 'auto' or use another method"
        )
    return found


def by_layer(values: Tensor, layers: Sequence[PrunableLayer]) -> dict[str, Tensor]:
    """A vector over all n units, cut into the layers' parts by name."""
    parts = torch.split(values, [layer.units for layer in layers])
    return {layer.name: part for layer, part in zip(layers, parts, strict=True)}


class MaskedModel:
    """A network whose units are scaled by coefficients; its own tensors are never written to.

    Weights are frozen: gradients flow to the coefficients alone. Buffers are copies, so that batch
    norm in train mode updates no running statistics of the network's.
    """

    def __init__(self, model: nn.Module, layers: Sequence[PrunableLayer]) -> None:
        if not layers:
            raise ContractError("expected layers to mask, got none")
        # A parameter that several modules share has one name here, not that of every module.
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._model = model
        self._parameters = {name: p.detach() for name, p in model.named_parameters()}
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._sizes = [layer.units for layer in layers]
        self._weights = [names[id(model.get_parameter(layer.weight))] for layer in layers]
        self._biases = [
            None if layer.bias is None else names[id(model.get_parameter(layer.bias))]
            for layer in layers
        ]
        #: number of units n
        self.units = sum(self._sizes)
        #: where the coefficients have to be
        self.device = self._parameters[self._weights[0]].device

    def __call__(
        self, images: Tensor, weight_scale: Tensor, bias_scale: Tensor | None = None
    ) -> Tensor:
        """Logits (N x K) with every unit's weights and bias multiplied by its coefficients.

        Parameters
        ----------
        images:
            float32 in [0, 1], N x C x H x W.
        weight_scale:
            n coefficients of norms' γ, or of the rows of other layers' weights.
        bias_scale:
            n coefficients of β or bias, ignored for units without one; None is all ones.

        """
        tensors = {**self._parameters, **self._buffers}
        for name, scale in zip(self._weights, torch.split(weight_scale, self._sizes), strict=True):
            weight = self._parameters[name]
            tensors[name] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        if bias_scale is not None:
            for bias, scale in zip(self._biases, torch.split(bias_scale, self._sizes), strict=True):
                if bias is not None:
                    tensors[bias] = self._parameters[bias] * scale
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        logits: Tensor = functional_call(self._model, tensors, (images,))
        return logits


@contextlib.contextmanager
def masked(
    model: nn.Module, layers: Sequence[PrunableLayer], *, batch_statistics: bool
) -> Iterator[MaskedModel]:
    """``model`` under masks, in train mode (norms use the batch's statistics) or in eval mode.

    Afterwards every module's mode is what it was.
    """
    with channels_last_weights(model), modes_kept(model):
        model.train(batch_statistics)
        yield MaskedModel(model, layers)


# -- pruning ---------------------------------------------------------------------------------------


class UnitPruner:
    """Zeroes units of a model in place, from its original weights each time."""

    def __init__(self, model: nn.Module, layers: Sequence[PrunableLayer]) -> None:
        self._sizes = [layer.units for layer in layers]
        self._weights = [model.get_parameter(layer.weight) for layer in layers]
        self._originals = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def prune(self, units: Tensor) -> None:
        """Zero γ, or the weight row, of the marked units (bool, n); all others are as they were.

        Shifts and biases stay: a pruned norm channel is the constant β.
        """
        parts = torch.split(units, self._sizes)
        for weight, original, part in zip(self._weights, self._originals, parts, strict=True):
            weight.copy_(original)
            weight[part.to(weight.device)] = 0


def lowest_units(masks: Tensor, by: Literal["threshold", "number"], level: float) -> Tensor:
    """Marks (bool, n) on the units with mask <= ``level``, or on the ``level`` lowest masks.

    Among equal masks the number takes the first layers' units first.
    """
    if by == "threshold":
        return masks <= level
    marked = torch.zeros_like(masks, dtype=torch.bool)
    marked[masks.argsort(stable=True)[: int(level)]] = True
    return marked


class PruningOptions(Protocol):
    """What :func:`prune_by_masks` reads of a method's configuration."""

    @property
    def selection(self) -> Selection: ...
    @property
    def prune_by(self) -> Literal["threshold", "number"]: ...
    @property
    def threshold(self) -> float: ...
    @property
    def number(self) -> int: ...
    @property
    def grid(self) -> tuple[float, ...]: ...
    @property
    def step(self) -> int: ...
    @property
    def tolerance(self) -> float: ...


@attrs.frozen(eq=False, kw_only=True)
class PrunedUnits:
    """What was pruned, and why so much."""

    #: threshold or number; None where even the lowest one costs too much, and nothing was pruned
    level: float | None
    #: bool, n
    units: Tensor
    #: accuracy on the held-out part at every level that was tried, in order
    accuracies: dict[float, float]


def prune_by_masks(
    model: nn.Module,
    layers: Sequence[PrunableLayer],
    masks: Tensor,
    options: PruningOptions,
    held_out: ImageSet | None,
    context: Context,
) -> PrunedUnits:
    """Prune ``model`` in place by its masks (n), at the level that the selection rule chooses.

    ``fixed`` takes the configured level and needs no held-out part. ``clean`` takes the last level
    before accuracy on it falls by more than the tolerance; ``oracle``, of the levels that ``clean``
    accepts, the one with the least test attack success.
    """
    pruner, by = UnitPruner(model, layers), options.prune_by
    tried: dict[float, float] = {}

    def prune_to(level: float | None) -> Tensor:
        units = (
            torch.zeros_like(masks, dtype=torch.bool)
            if level is None
            else lowest_units(masks, by, level)
        )
        pruner.prune(units)
        return units

    if options.selection is Selection.FIXED:
        chosen: float | None = options.threshold if by == "threshold" else options.number
        if by == "number" and options.number >= len(masks):
            raise InputError(
                f"expected to prune fewer than the model's {len(masks)} units, got number = "
                f"{options.number}; lower it"
            )
        return PrunedUnits(level=chosen, units=prune_to(chosen), accuracies=tried)
    if held_out is None:
        raise ContractError(f"selection = {options.selection.value!r} needs a held-out part")

    def accuracy_at(level: float) -> float:
        prune_to(level)
        tried[level] = context.accuracy(model, held_out)
        return tried[level]

    def attack_success(level: float | None) -> float:
        prune_to(level)
        return context.oracle(model)

    levels = options.grid if by == "threshold" else range(0, len(masks), options.step)
    floor = context.accuracy(model, held_out) - options.tolerance
    chosen = largest_accepted(levels, accuracy_at, floor)
    if options.selection is Selection.ORACLE:
        accepted: list[float | None] = [
            level for level in tried if chosen is not None and level <= chosen
        ]
        chosen = min(accepted or [None], key=attack_success)
    return PrunedUnits(level=chosen, units=prune_to(chosen), accuracies=tried)
