"""Penultimate units: how active they are, and the biases by which they are put to sleep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import attrs
import torch

from backdoorkit.api import (
    ContractError,
    StructureError,
    collect_features,
    find_structure,
    require_linear_head,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from backdoorkit.api import Context, ImageSet, PrunableLayer, Structure

__all__ = ["Units"]

#: far below what any unit could make up for
_LOW: Final = -1e6
#: times that the reduction of a bias is doubled at most
_DOUBLINGS: Final = 60


@attrs.frozen(eq=False)
class Units:
    """The penultimate units of one network.

    Each owns ``columns`` consecutive inputs of the head: one behind global pooling or a hidden
    layer, h * w of a flattened map. ``gate`` is the layer, right before the last ReLU, whose biases
    switch units off.
    """

    model: nn.Module
    structure: Structure
    head: nn.Linear
    gate: PrunableLayer
    columns: int

    @classmethod
    def of(cls, model: nn.Module, data: ImageSet, context: Context) -> Units:
        """The units of ``model``, found on a few images.

        Raises
        ------
        StructureError
            where features do not come out of a ReLU that a bias of their own can close.

        """
        structure = find_structure(model, data.shape, data.num_classes)
        head = require_linear_head(structure, "pruningaware", "use another model")
        some = data.subset(torch.arange(min(len(data), 4)))
        for layer in reversed(structure.layers(shortcuts=True)):
            columns, rest = divmod(structure.feature_dim, layer.units)
            if rest == 0 and layer.bias is not None:
                module = cast("nn.Linear", model.get_submodule(head))
                units = cls(model, structure, module, layer, columns)
                if units._gate_closes(some, context):
                    return units
        raise StructureError(
            f"pruningaware puts units to sleep by their biases, and the inputs of {head!r} in "
            f"{structure.network} do not come out of a ReLU with a bias per unit; use another "
            "model (preact-resnet-18 with final_norm = true)"
        )

    @property
    def count(self) -> int:
        """Number of units."""
        return self.gate.units

    @property
    def bias(self) -> nn.Parameter:
        """The gate's biases, one per unit."""
        return self.model.get_parameter(cast("str", self.gate.bias))

    def columns_of(self, marked: Tensor) -> Tensor:
        """bool, d: the head's columns that the marked units (bool, units) own."""
        return marked.repeat_interleave(self.columns)

    def features(self, data: ImageSet, context: Context) -> tuple[Tensor, Tensor]:
        """Activations (N x units x columns) and logits (N x K), on the CPU."""
        features, logits = collect_features(self.model, self.structure, data, context)
        return features.reshape(len(features), self.count, self.columns), logits

    @torch.no_grad()
    def put_to_sleep(self, marked: Tensor, data: ImageSet, context: Context) -> Tensor:
        """Lower the biases of the marked units (bool, units) until none answers to any image.

        Returns by how much (float32, units, 0 where nothing had to be done). The reduction starts
        at the largest activation and is doubled, so that there is room to spare for other images.
        """
        bias, original = self.bias, self.bias.detach().clone()
        reduction = torch.zeros_like(bias)
        for _ in range(_DOUBLINGS):
            awake = self.features(data, context)[0].amax(dim=(0, 2)).to(bias.device)
            awake = awake * marked.to(bias.device)
            if not bool(awake.any()):
                return reduction
            reduction = torch.where(awake > 0, torch.maximum(2 * reduction, awake), reduction)
            bias.copy_(original - reduction)
        raise ContractError("the units to be restored cannot be put to sleep by their biases")

    @torch.no_grad()
    def _gate_closes(self, data: ImageSet, context: Context) -> bool:
        """Whether a low bias silences its own unit, and only that."""
        bias, original = self.bias, self.bias.detach().clone()
        expected = self.features(data, context)[0]
        expected[:, 0] = 0
        bias[0] = _LOW
        one_closed, _ = self.features(data, context)
        bias.fill_(_LOW)
        all_closed, _ = self.features(data, context)
        bias.copy_(original)
        return torch.equal(one_closed, expected) and not bool(all_closed.any())
