"""Which weights hold the neurons that TSBD ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backdoorkit.api import PrunableLayer, Structure

__all__ = ["ranked_weights"]

_ROWS = ("linear", "attention")


def ranked_weights(structure: Structure, choice: str) -> tuple[str, ...]:
    """Names of the weights whose first axis is ranked; never a shortcut's or the head's.

    ``choice`` is ``conv``, ``linear`` (with the rows of attention projections) or ``auto``:
    convolutions, except in a transformer, where the only one embeds patches.

    Raises
    ------
    StructureError
        where the model has no such layer.

    """
    if choice == "auto":
        is_convolutional = len(structure.layers("conv")) > 1 or not structure.layers(*_ROWS)
        choice = "conv" if is_convolutional else "linear"
    kinds = ("conv",) if choice == "conv" else _ROWS
    layers: tuple[PrunableLayer, ...] = structure.require_layers("tsbd", *kinds)
    return tuple(layer.weight for layer in layers)
