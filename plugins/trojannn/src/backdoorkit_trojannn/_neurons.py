"""Inner neurons: which of them the next layer listens to most, and how active they are."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from backdoorkit.api import InputError, StructureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backdoorkit.api import Structure

__all__ = ["NeuronWatch", "connectivity", "most_connected", "watched"]


def connectivity(model: nn.Module, structure: Structure, layer: str) -> Tensor:
    """c_j = Σ |W_{·,j}|: how strongly ``layer`` reads each of its inputs j (float32, units).

    The sum runs over the outputs and, of a convolution, over its kernel. Where a batch norm
    follows, each output counts by what the norm makes of it, |γ| / sqrt(σ² + ε).

    Raises
    ------
    StructureError
        where the layer's inputs are no neurons: it is neither linear nor a plain convolution.

    """
    module = model.get_submodule(structure.layer(layer).name)
    if not isinstance(module, nn.Linear | nn.Conv2d) or getattr(module, "groups", 1) != 1:
        raise StructureError(
            f"trojannn chooses among the inputs of a linear layer or an ungrouped convolution, and "
            f"{layer!r} of {structure.network} is a {type(module).__name__}; choose another layer"
        )
    weight = module.weight.detach().abs()
    strengths = weight.reshape(*weight.shape[:2], -1).sum(2)
    return _norm_scale(model, structure, layer, len(strengths)).to(weight.device) @ strengths


def _norm_scale(model: nn.Module, structure: Structure, layer: str, outputs: int) -> Tensor:
    """Factor by which a batch norm behind ``layer`` scales each of its outputs; ones without it."""
    scale = torch.ones(outputs)
    for pair in structure.conv_norm_pairs:
        if layer in pair.conv_names and pair.is_foldable and pair.norm_name is not None:
            norm = cast("nn.BatchNorm2d", model.get_submodule(pair.norm_name))
            variance = cast("Tensor", norm.running_var)
            gains = norm.weight.detach().abs() / (variance + norm.eps).sqrt()
            scale = gains[pair.start : pair.start + outputs]
    return scale


def most_connected(strengths: Tensor, count: int) -> Tensor:
    """int64, ascending: the ``count`` neurons J with the largest connectivity."""
    if count > len(strengths):
        raise InputError(
            f"expected at most the layer's {len(strengths)} neurons, got neurons = {count}; set "
            "fewer, or choose another layer"
        )
    return strengths.topk(count).indices.sort().values


class NeuronWatch:
    """Holds the activations of the latest forward; earlier ones are let go."""

    def __init__(self, neurons: Tensor) -> None:
        self._neurons = neurons
        self._inputs: Tensor | None = None

    def keep(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Forward hook of the layer that reads the neurons."""
        self._inputs = args[0] if isinstance(module, nn.Conv2d) else args[0].movedim(-1, 1)

    @property
    def inputs(self) -> Tensor:
        """All inputs of the layer: N x units, or N x units x positions in one or two axes."""
        assert self._inputs is not None, "no forward has reached the layer yet"
        return self._inputs

    @property
    def activations(self) -> Tensor:
        """float32, N x q x P: of each neuron at the P positions of its feature map."""
        inputs = self.inputs.reshape(*self.inputs.shape[:2], -1)
        return inputs[:, self._neurons].float()


@contextlib.contextmanager
def watched(model: nn.Module, layer: str, neurons: Tensor) -> Iterator[NeuronWatch]:
    """The activations of ``neurons``, inputs of ``layer``, in forwards inside the ``with`` block.

    Gradients flow through.
    """
    watch = NeuronWatch(neurons)
    handle = model.get_submodule(layer).register_forward_pre_hook(watch.keep)
    try:
        yield watch
    finally:
        handle.remove()
